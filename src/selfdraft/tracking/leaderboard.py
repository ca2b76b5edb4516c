"""Show a comparison: a table in a terminal within 100 columns, the same as Markdown, and a table for W&B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfdraft.core.messages import printable
from selfdraft.tracking.comparison import PLAIN, ranking
from selfdraft.tracking.lines import CONTENDERS
from selfdraft.tracking.table import board, certificate, interval, number

Result = Mapping[str, Any]
"""What `comparison.summarize_comparison` returns."""

HEADER = (
    "| contender | tokens per forward | tokens/s | with prefill | speedup over all tokens [95 % CI] "
    "| median by prompt [95 % CI] | exact / tie / mismatch |"
)


def print_comparison(result: Result, console: Console) -> None:
    """Print the leaderboard, the medians by family, and why each contender won or lost."""
    console.print()
    title = Text.assemble(("comparison", "bold cyan"), printable(f" · {result['model']} · {result['dataset']}"))
    title.append(
        f" ({result['prompts']:,} prompts, {result['turns']:,} turns; speedups are over plain decoding)", "dim"
    )
    console.print(title)
    console.print(_leaderboard(result))
    if len(_families(result)) > 1:
        console.print(_by_family(result))
    for name in ranking(result):
        if why := result[CONTENDERS][name]["why"]:
            console.print(Text.assemble((printable(name), "bold"), f": {why}"))


def as_markdown(result: Result) -> str:
    """Return the leaderboard as a Markdown table, and below it the medians by family."""
    rows = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    rows += ["| " + " | ".join(_cells(name, result[CONTENDERS][name])) + " |" for name in ranking(result)]
    families = _families(result)
    rows += [
        "",
        "| median speedup | " + " | ".join(map(printable, families)) + " |",
        "|---" * (len(families) + 1) + "|",
    ]
    rows += ["| " + " | ".join([printable(name), *cells]) + " |" for name, cells in _medians(result)]
    return "\n".join(rows) + "\n"


def rows_of(result: Result) -> tuple[list[str], list[list[Any]]]:
    """Return column names, and a row of plain values for each contender, the fastest first."""
    columns = [
        "contender",
        "tokens per forward",
        "tokens/s",
        "tokens/s with prefill",
        "speedup",
        "low",
        "high",
        "median",
    ]
    columns += ["exact", "tie", "mismatch"]
    rows = []
    for name in ranking(result):
        found = result[CONTENDERS][name]
        total = found["speedup_total_interval"]
        rows.append(
            [
                name,
                found["tokens_per_forward"],
                found["decode_tokens_per_s"],
                found["end_to_end_tokens_per_s"],
                total["median"],
                total["low"],
                total["high"],
                found["speedup"]["median"],
                *(found["lossless"][verdict] for verdict in ("exact", "tie", "mismatch")),
            ]
        )
    return columns, rows


def _leaderboard(result: Result) -> Table:
    columns = ("tokens/\nforward", "tokens/s", "with\nprefill", "speedup\n[95 % CI]", "median by\nprompt")
    table = board("contender", columns=(*columns, "exact/tie/\nmismatch"))
    for place, name in enumerate(ranking(result)):
        found = result[CONTENDERS][name]
        cells = [found["tokens_per_forward"], found["decode_tokens_per_s"], found["end_to_end_tokens_per_s"]]
        table.add_row(
            Text(printable(name), "bold" if place == 0 else ""),
            *(number(value, digits) for value, digits in zip(cells, (2, 1, 1), strict=True)),
            interval(found["speedup_total_interval"]),
            number(found["speedup"]["median"], 2, "×"),
            Text(_verdicts(found), certificate(found["lossless"]).style),
        )
    return table


def _by_family(result: Result) -> Table:
    table = board("median speedup", columns=())
    for family in _families(result):
        table.add_column(Text(printable(family)), justify="right", max_width=11, overflow="fold")
    for name, cells in _medians(result):
        table.add_row(Text(printable(name)), *cells)
    return table


def _medians(result: Result) -> list[tuple[str, list[str]]]:
    """Return each contender's median speedups by family; plain decoding's are all 1."""
    families = _families(result)
    return [
        (
            name,
            [
                number(result[CONTENDERS][name]["by_category"][family]["speedup"]["median"], 2, "×")
                for family in families
            ],
        )
        for name in ranking(result)
        if name != PLAIN
    ]


def _families(result: Result) -> list[str]:
    return list(result[CONTENDERS][PLAIN]["by_category"])


def _cells(name: str, found: Mapping[str, Any]) -> list[str]:
    return [
        printable(name),
        number(found["tokens_per_forward"]),
        number(found["decode_tokens_per_s"], 1),
        number(found["end_to_end_tokens_per_s"], 1),
        interval(found["speedup_total_interval"]),
        interval(found["speedup"]),
        _verdicts(found, " / "),
    ]


def _verdicts(found: Mapping[str, Any], between: str = "/") -> str:
    counts = [found["lossless"][verdict] for verdict in ("exact", "tie", "mismatch")]
    return between.join(map(str, counts)) if any(counts) else "not certified"
