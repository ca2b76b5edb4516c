"""Show what task=advise found: a ranked table of all candidates, how good the predictions were, and what to use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfdraft.core.messages import printable
from selfdraft.tracking.display.fitted import Fitted
from selfdraft.tracking.display.table import board, certificate, interval, number
from selfdraft.tracking.numbers.comparison import PLAIN, ranking
from selfdraft.tracking.numbers.lines import CONTENDERS

Result = Mapping[str, Any]
"""The summary of the confirmation, with `predicted`, `tried`, `left_out` and `prediction_errors`."""

COLUMNS = (
    "predicted",
    "tried",
    "confirmed\n[95 % CI]",
    "tokens/\nforward",
    "accepted",
    "peak\nmemory",
    "exact/tie/\nmismatch",
)

LESS_NEEDED = ("peak\nmemory", "accepted")  # headings of columns that a narrow terminal does without


def print_candidates(result: Result, console: Console) -> None:
    """Print the table, then how far predictions were off, and why candidates were left out."""
    console.print()
    title = Text.assemble(("advice", "bold cyan"), printable(f" · {result['model']} · {result['dataset']}"))
    title.append(f" ({result['prompts']:,} prompts; speedups are over plain decoding, over all tokens)", "dim")
    console.print(title)
    console.print(Fitted(_table(result), LESS_NEEDED))
    if said := off(result):
        console.print(said)
    for name, reason in result["left_out"].items():
        console.print(printable(f"left out: {name}: {reason}"))


def order(result: Result) -> list[str]:
    """Return all candidates: the confirmed ones, the fastest first, then the others by trial or prediction."""
    confirmed = ranking(result)
    others = {name: found["speedup"] for name, found in result["predicted"].items()}
    others |= {name: found["speedup_total"] or 0.0 for name, found in result["tried"].items()}
    rest = [name for name in others if name not in confirmed]
    return [*confirmed, *sorted(rest, key=lambda name: -others[name])]


def off(result: Result) -> str:
    """Return in a line how far the predictions of confirmed candidates were off; empty if there are none."""
    errors = result["prediction_errors"]
    if not errors:
        return ""
    mean, worst = sum(map(abs, errors.values())) / len(errors), max(errors, key=lambda name: abs(errors[name]))
    return (
        f"predictions were off by {mean:.0%} on average; most for {printable(worst)}, by {errors[worst]:+.0%} of what "
        "was confirmed"
    )


def accepted_share(found: Mapping[str, Any]) -> float | None:
    """Return the share of the drafted depths that were accepted; None if nothing was drafted."""
    depths = found["acceptance_by_depth"]
    offered = sum(depth["offered"] for depth in depths)
    return sum(depth["accepted"] for depth in depths) / offered if offered else None


def _table(result: Result) -> Table:
    table = board("candidate", columns=COLUMNS)
    for place, name in enumerate(order(result)):
        predicted, tried = result["predicted"].get(name), result["tried"].get(name)
        confirmed = result[CONTENDERS].get(name)
        measured = confirmed or tried
        share = None if measured is None else accepted_share(measured)
        forward = measured or predicted
        table.add_row(
            Text(printable(name), "bold" if place == 0 else ""),
            number(None if predicted is None else predicted["speedup"], 2, "×"),
            number(None if tried is None else tried["speedup_total"], 2, "×"),
            "" if confirmed is None else "1.00×" if name == PLAIN else interval(confirmed["speedup_total_interval"]),
            number(None if forward is None else forward["tokens_per_forward"]),
            "" if share is None else f"{share:.0%}",
            number(None if measured is None else measured.get("startup", {}).get("peak_memory_mb"), 0, " MB"),
            "" if measured is None else _verdicts(measured),
        )
    return table


def _verdicts(found: Mapping[str, Any]) -> Text:
    counts = "/".join(str(found["lossless"][verdict]) for verdict in ("exact", "tie", "mismatch"))
    return Text(counts, certificate(found["lossless"]).style)
