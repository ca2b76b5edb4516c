"""Results of earlier runs, side by side: of task=evaluate and task=compare, read from their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from selfdraft.core.messages import printable
from selfdraft.tracking.display.fitted import Fitted
from selfdraft.tracking.display.table import board, interval, number
from selfdraft.tracking.files.result_file import markdown, taken_from
from selfdraft.tracking.numbers.lines import CONTENDERS

HEADER = (
    "| run | contender | model | dtype | prompts | tokens per forward | tokens/s (plain decoding) "
    "| speedup over all tokens [95 % CI] | median by prompt | exact / tie / mismatch |"
)


class Earlier(NamedTuple):
    """What one contender of an earlier run reached.

    Attributes:
        run: name of the run's folder.
        cells: the columns of `HEADER` after the first.
    """

    run: str
    cells: list[str]


def read_earlier(folders: Sequence[str | Path]) -> list[Earlier]:
    """Return the rows of all contenders in these runs.

    Raises:
        UserError: a folder has no result of either task.
    """
    rows = []
    for folder in map(Path, folders):
        rows += [Earlier(folder.name or str(folder), cells) for cells in taken_from(folder, _rows)]
    return rows


def print_earlier(rows: Sequence[Earlier], console: Console) -> None:
    """Print the rows, with a warning that their times are not of the same minutes."""
    columns = (
        "tokens/\nforward",
        "tokens/s\n(plain)",
        "speedup\n[95 % CI]",
        "median by\nprompt",
        "exact/tie/\nmismatch",
    )
    table = board("run", "contender", columns=columns)
    for run, (name, _, _, _, *cells) in rows:
        table.add_row(Text(printable(run)), Text(printable(name)), *cells)
    console.print(Fitted(table, ("median by\nprompt",)))
    console.print("earlier runs: each was timed by itself, so compare their speedups, not their tokens per second")


def earlier_markdown(rows: Sequence[Earlier]) -> str:
    """Return the rows as a Markdown table."""
    return markdown(HEADER, ["| " + " | ".join(map(printable, [run, *cells])) + " |" for run, cells in rows]) + "\n"


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of every contender; of an evaluation, those of its drafter and its references."""
    if CONTENDERS in result:
        plain = result[CONTENDERS]["none"]["decode_tokens_per_s"]
        return [_cells(name, result, found, plain) for name, found in result[CONTENDERS].items()]
    return [
        _cells(
            result["drafter"],
            result,
            result,
            result["baseline_tokens_per_s"],
        )
    ]


def _cells(
    name: str,
    result: Mapping[str, Any],
    found: Mapping[str, Any],
    plain: float | None,
) -> list[str]:
    # Evaluations of earlier versions have no interval of it.
    alone = {"median": found["speedup_total"], "low": None, "high": None}
    over_all = found.get("speedup_total_interval", alone)
    return [
        name,
        result["model"],
        result["dtype"],
        f"{result['prompts']:,} ({result['turns']:,} turns)",
        number(found["tokens_per_forward"]),
        f"{number(found['decode_tokens_per_s'], 1)} ({number(plain, 1)})",
        interval(over_all, None if name == "none" else result["prompts"]),
        number(found["speedup"]["median"], 2, "×"),
        " / ".join(str(found["lossless"][verdict]) for verdict in ("exact", "tie", "mismatch")),
    ]
