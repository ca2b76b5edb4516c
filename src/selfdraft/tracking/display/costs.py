"""Show a cost model as a table in the terminal and as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfdraft.core.costmodel import CostModel
from selfdraft.core.messages import printable
from selfdraft.core.pathcosts import PathCosts
from selfdraft.tracking.display.picture import draw

SHARES = ("attention", "mlp", "layer", "base")
COLOURS = ("#3b6fb6", "#e08a2e", "#8a8a8a", "#5aa469")


def parts_of(costs: CostModel, tokens: float) -> dict[str, float]:
    """Return the seconds that all parts of each kind take in a full forward of `tokens` tokens."""
    once = {name: getattr(costs, name)(tokens) for name in SHARES}
    return {name: seconds * (1 if name == "base" else costs.layers) for name, seconds in once.items()}


def print_costs(costs: CostModel, console: Console) -> None:
    """Print the milliseconds of a forward and of its parts, by number of tokens."""
    console.print()
    console.print(Text.assemble((printable(costs.model), "bold"), f" in {costs.dtype} on {costs.device}; milliseconds"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = ("tokens", "forward", "in forwards of 1", "all attentions", "all MLPs", "rest of layers", "outside layers")
    for name in names:
        table.add_column(name, justify="right")
    for size in costs.forward.sizes:
        cells = [f"{size}", f"{1e3 * costs.forward(size):.2f}", f"{costs.forward.relative(size):.2f}"]
        measured = size in costs.base.sizes
        cells += [f"{1e3 * s:.2f}" for s in parts_of(costs, size).values()] if measured else []
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"only the head: {1e3 * costs.head(1):.2f} ms for 1 token, {1e3 * costs.head(8):.2f} for 8; "
        f"asking for a confidence: {1e3 * costs.confidence_s:.2f} ms"
    )
    for lines, unit in ((costs.by_context, "context"), (costs.by_batch, "rows")):
        for line in lines:
            points = ", ".join(f"{n}: {1e3 * s:.2f}" for n, s in zip(line["sizes"], line["seconds"], strict=True))
            console.print(f"{unit} {line[unit]:>5}:  {points}")


def print_path_costs(name: str, costs: PathCosts, console: Console) -> None:
    """Print what drafting with the path `name` costs, and how many accepted tokens pay for it."""
    console.print()
    console.print(Text.assemble("drafting with the path ", (printable(name), "bold"), "; in forwards of 1 token"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    reuses = any(step.reuse is not None for step in costs.steps)
    names = ["drafted", "each", "verification"] + ["reusing the draft", "without a bonus"] * reuses + ["pays above"]
    for column in names:
        table.add_column(column, justify="right")
    for step in costs.steps:
        seconds = [costs.draft, step.verify, *([step.reuse, step.reuse_without_bonus] if reuses else [])]
        shares = ["–" if s is None else f"{s / costs.plain:.2f}" for s in seconds]
        unit = "" if step.drafted == 1 else " tokens"
        table.add_row(f"{step.drafted}", *shares, f"{costs.break_even(step):.2f}{unit}")
    console.print(table)
    console.print(
        f"a plain forward: {1e3 * costs.plain:.2f} ms; through the path: "
        + ", ".join(f"{n}: {1e3 * s:.2f}" for n, s in zip(costs.forward.sizes, costs.forward.seconds, strict=True))
        + "\npays above: accepted tokens of a draft (of one token: the acceptance rate) above which drafting gains"
    )


def plot_costs(costs: CostModel, path: Path) -> None:
    """Draw the cost of a forward and of its parts, by number of tokens, into a PNG file."""
    draw(path, (11, 4.2), lambda figure: _paint(costs, figure))


def _paint(costs: CostModel, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    left.plot(costs.forward.sizes, [1e3 * s for s in costs.forward.seconds], "o-", label="after the usual prefix")
    for line in costs.by_context:
        left.plot(line["sizes"], [1e3 * s for s in line["seconds"]], ".--", label=f"after {line['context']} tokens")
    left.set_xlabel("tokens of a forward, root included")
    left.set_ylabel("milliseconds")
    left.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=8)
    below = [0.0] * len(costs.base.sizes)
    for name, colour in zip(SHARES, COLOURS, strict=True):
        heights = [1e3 * parts_of(costs, size)[name] for size in costs.base.sizes]
        label = {"layer": "rest of layers", "base": "outside layers"}.get(name, f"all {name}s")
        right.bar([str(n) for n in costs.base.sizes], heights, bottom=below, color=colour, label=label)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    right.set_xlabel("tokens of a forward")
    right.set_ylabel("milliseconds")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(printable(f"{costs.model} in {costs.dtype} on {costs.device}"), fontsize=11)
