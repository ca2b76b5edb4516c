"""Show where a decoding step goes, with each engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfdraft.core.messages import printable
from selfdraft.tracking.display.table import number

LABELS = {
    "products": "matrix products",
    "attention": "attention",
    "small": "norms, small operations",
    "layers": "layers (one graph)",
    "head": "head",
    "masks": "block, mask, positions",
    "accept": "accept",
    "commit": "commit",
    "drafter": "drafter",
    "host": "host: the rest",
}


def print_steps(measured: Mapping[str, Any], console: Console) -> None:
    """Print a table for each engine: milliseconds and shares of a step's parts; and the memory's floor.

    Args:
        measured: `drafter`, its label; `bandwidth`, in bytes per second; and `engines`, each with `engine`, `bytes`
            (`weights` and `cache`), `floor_s`, `over_floor` (of a forward of one token) and `steps`, see `StepParts`.
    """
    for engine in measured["engines"]:
        console.print()
        line = f": where a step goes, with the drafter {measured['drafter']}; milliseconds and share"
        console.print(Text.assemble((printable(engine["engine"]), "bold"), printable(line)))
        console.print(_parts(engine["steps"]))
        console.print(_floor(engine, measured["bandwidth"]))


def _floor(engine: Mapping[str, Any], bandwidth: float) -> str:
    weights, cache = (engine["bytes"][name] / 1e6 for name in ("weights", "cache"))
    taken = engine["steps"][0]["forward_s"]
    return (
        f"a forward of 1 token reads {weights + cache:,.1f} MB (weights {weights:,.1f}, cache {cache:,.1f}), at "
        f"{bandwidth / 1e9:.1f} GB/s in {1e3 * engine['floor_s']:.2f} ms\n"
        f"it takes {1e3 * taken:.2f} ms: x {engine['over_floor']:.1f} of the memory's floor"
    )


def _parts(steps: list[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part")
    for step in steps:
        table.add_column(f"{step['tokens']} token{'s' * (step['tokens'] > 1)}", justify="right")
        table.add_column("", justify="right")
    for name in steps[0]["parts_s"]:
        cells = [(step["parts_s"][name], step["step_s"]) for step in steps]
        last = name == list(steps[0]["parts_s"])[-1]
        table.add_row(LABELS[name], *_cells(cells), end_section=last)
    table.add_row("whole step", *_cells([(step["step_s"], step["step_s"]) for step in steps]), style="bold")
    table.add_row("forward alone", *_cells([(step["forward_s"], step["step_s"]) for step in steps]), style="dim")
    return table


def _cells(pairs: list[tuple[float, float]]) -> list[str]:
    return [cell for seconds, whole in pairs for cell in (number(1e3 * seconds), f"{seconds / whole:.0%}")]
