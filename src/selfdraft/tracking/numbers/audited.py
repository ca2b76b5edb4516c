"""The lines and the result of task=audit: read, counted and printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfdraft.core.certificate import REASONS
from selfdraft.core.messages import one_line
from selfdraft.tracking.files.records import AUDIT, Line, RecordFile, record_path
from selfdraft.tracking.numbers.lines import LEFT_OUT, refuse_malformed

SHOWN = 10  # answers that the table shows
MAX_TEXT = 24  # characters of a token's text that it shows
COLOURS = {"exact": "green", "tie": "yellow", "mismatch": "bold red"}


def read_audited(folder: Path) -> list[Line]:
    """Return the lines of `folder`/audit.jsonl.

    Raises:
        UserError: a line is malformed; the message names it.
    """
    lines = RecordFile(record_path(folder, name=AUDIT)).read()
    refuse_malformed(lines, folder, name=AUDIT)
    return list(lines)


def summarize_audit(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the counts of the lines by verdict and reason, and the largest margin of a tie, in logits."""
    judged = [line for line in lines if LEFT_OUT not in line]
    counts = Counter(line["verdict"] for line in judged)
    margins = [line["margin"] for line in judged if line["verdict"] == "tie" and line["margin"] is not None]
    return {
        "answers": len(lines),
        "tokens": sum(line["tokens"] for line in judged),
        **{verdict: counts[verdict] for verdict in COLOURS},
        "left_out": len(lines) - len(judged),
        "reasons": dict(Counter(line["reason"] for line in judged if line["verdict"] == "mismatch")),
        "largest_tie_margin": max(margins, default=None),
        "warnings": sum("warning" in line for line in judged),
    }


def print_audit(result: Mapping[str, Any], lines: Sequence[Line], console: Console) -> None:
    """Print the counts, and the answers that are not exact, the worst first."""
    counts = Text()
    for verdict, colour in COLOURS.items():
        counts.append(f"{', ' if counts else ''}{result[verdict]} {verdict}", colour if result[verdict] else "dim")
    console.print(Text.assemble(f"{result['answers']} answers, {result['tokens']:,} tokens: ", counts))
    if result["largest_tie_margin"] is not None:
        console.print(f"largest margin of a tie: {result['largest_tie_margin']:.4g} logits")
    if result[LEFT_OUT]:
        console.print(f"left out: {result[LEFT_OUT]} answers that are longer than the model's positions")
    judged = [line for line in lines if line.get("verdict", "exact") != "exact"]
    if not judged:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("id", "verdict", "at token", "written", "the model's", "margin", "rounding"):
        table.add_column(name, justify="right" if name in ("at token", "margin", "rounding") else "left")
    for line in sorted(judged, key=_badness)[:SHOWN]:
        table.add_row(
            f"{line['id']:.20}" + f" turn {line['turn'] + 1}" * bool(line["turn"]),
            Text(line["verdict"], COLOURS[line["verdict"]]),
            f"{line['first_divergence']} of {line['tokens']}",
            _token(line["written_id"], line["written"]),
            _token(line["model_id"], line["model"]),
            _number(line["margin"]),
            _number(line["control"]),
        )
    console.print(table)
    if len(judged) > SHOWN:
        console.print(f"and {len(judged) - SHOWN} more")
    for reason, count in result["reasons"].items():
        console.print(f"{count} mismatch: {_reason(reason)}")


def _badness(line: Line) -> tuple[bool, float]:
    """Return a sort key: mismatches first, then by margin, the largest first; an end without a margin before all."""
    margin = line["margin"]
    return line["verdict"] != "mismatch", -(float("inf") if margin is None else margin)


def _token(token: int | None, text: str | None) -> str:
    if token is None:
        return "the end"
    said = one_line(repr(text))
    return f"{said if len(said) <= MAX_TEXT else said[:MAX_TEXT] + '…'} ({token})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _reason(reason: str) -> str:
    if reason == "length":
        return "the answer ends where the model goes on, or goes on after its end of sequence"
    return next((text for name, text in REASONS.items() if name == reason), reason)
