"""Draw a result as one picture: speedup by family of prompts, and acceptance by depth."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from selfdraft.core.messages import printable
from selfdraft.tracking.files.atomic import write_bytes_atomic
from selfdraft.tracking.numbers.summary import FEW_OFFERS

_BLUE, _ORANGE, _GREY, _PALE = "#3b6fb6", "#e08a2e", "#8a8a8a", "#cfcfcf"


def draw(path: Path, size: tuple[float, float], paint: Callable[[Figure], None]) -> None:
    """Let `paint` draw on an empty figure of `size` (width and height in inches), and write the PNG file `path`.

    Names come from users' files, so a dollar sign in them does not begin a formula.
    """
    # Figure rather than pyplot, which needs a window system and has global state that a second run would inherit.
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        paint(figure)
        image = io.BytesIO()
        figure.savefig(image, format="png")
    write_bytes_atomic(path, image.getvalue())


def plot_result(result: Mapping[str, Any], path: Path) -> None:
    """Draw `result` (of `summary.summarize`) into the PNG file `path`."""

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_speedups(left, result)
        _draw_acceptance(right, result)
        title = f"{result['drafter']} · {result['model']} · {result['dataset']}"
        figure.suptitle(printable(title), fontsize=12)

    draw(path, (11, max(4.2, 1.4 + 0.38 * len(result["by_category"]))), paint)


def plot_comparison(result: Mapping[str, Any], path: Path) -> None:
    """Draw `result` (of `comparison.summarize_comparison`) into the PNG file `path`: speedups and rates."""
    found = {name: result["contenders"][name] for name in result["ranking"]}

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
        for height, (name, measures) in enumerate(found.items()):
            total, colour = measures["speedup_total_interval"], _GREY if name == "none" else _BLUE
            if total["median"] is not None:
                _bar_with_interval(left, height, total, colour, result["prompts"])
            right.barh(height, measures["decode_tokens_per_s"] or 0.0, height=0.62, color=colour, alpha=0.85)
            right.annotate(
                f"{measures['decode_tokens_per_s'] or 0.0:.1f}",
                (measures["decode_tokens_per_s"] or 0.0, height),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        left.axvline(1.0, color=_GREY, linestyle="--", linewidth=1)
        left.set_yticks(range(len(found)), [printable(f"{name} (n={found[name]['prompts']})") for name in found])
        left.invert_yaxis()
        left.set_xlabel("speedup over plain decoding (all tokens, 95 % CI by prompt)")
        right.set_xlabel("tokens per second of decoding")
        right.margins(x=0.15)
        for axes in (left, right):
            axes.set_xlim(left=0.0)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(printable(f"comparison · {result['model']} · {result['dataset']}"), fontsize=12)

    draw(path, (11, max(3.2, 1.6 + 0.42 * len(found))), paint)


def plot_training(history: Sequence[Mapping[str, Any]], watched: str, path: Path) -> None:
    """Draw the curve of a fine-tuning into a PNG file: the expected acceptance of drafts for held-out prompts.

    Args:
        history: lines with `step`, `acceptance_by_depth` and the quantity named `watched`.
    """
    steps = [line["step"] for line in history]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(steps, [line[watched] for line in history], marker="o", markersize=3, color=_ORANGE)
        left.set_ylabel("tokens accepted of a draft, expected")
        for depth, rates in enumerate(zip(*(line["acceptance_by_depth"] for line in history), strict=True), start=1):
            right.plot(steps, rates, marker="o", markersize=3, label=f"depth {depth}")
        right.set_ylabel("acceptance")
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.legend(frameon=False, fontsize=8)
        for axes in (left, right):
            axes.set_xlabel("step")
            axes.set_ylim(bottom=0.0)
            axes.spines[["top", "right"]].set_visible(False)

    draw(path, (9, 4.2), paint)


def plot_learning(rates: Sequence[float], path: Path, window: int = 8) -> None:
    """Draw how acceptance grew over a stream of prompts into a PNG file.

    Args:
        rates: share of first drafted tokens that was accepted, prompt after prompt. window: prompts of a moving mean.
    """
    means = [sum(rates[max(i - window + 1, 0) : i + 1]) / min(i + 1, window) for i in range(len(rates))]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        numbers = range(1, len(rates) + 1)
        axes.plot(numbers, rates, linestyle="none", marker="o", markersize=3, color=_GREY, label="one prompt")
        axes.plot(numbers, means, color=_ORANGE, label=f"mean of the last {window}")
        axes.set_xlabel("prompt of the stream")
        axes.set_ylabel("acceptance of the first drafted token")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0.0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)

    draw(path, (6, 4), paint)


def _bar_with_interval(axes: Axes, height: int, speedup: Mapping[str, float], colour: str, prompts: int) -> None:
    """Draw a speedup as a bar, and its interval as a line with ends; that of one prompt is hatched, and has none."""
    if prompts == 1:
        axes.barh(height, speedup["median"], height=0.62, color="white", edgecolor=colour, hatch="///")
        return
    # By rounding, the median of all data may be outside the percentiles of its own draws.
    whiskers = [
        [max(0.0, length)] for length in (speedup["median"] - speedup["low"], speedup["high"] - speedup["median"])
    ]
    axes.barh(height, speedup["median"], height=0.62, color=colour, alpha=0.85)
    axes.errorbar(speedup["median"], height, xerr=whiskers, color="black", capsize=3, linewidth=1)


def _draw_speedups(axes: Axes, result: Mapping[str, Any]) -> None:
    rows = {**result["by_category"], "all": result} if len(result["by_category"]) != 1 else result["by_category"]
    rows = {name: row for name, row in rows.items() if row["speedup_total_interval"]["median"] is not None}
    for height, (name, row) in enumerate(rows.items()):
        speedup = row["speedup_total_interval"]
        _bar_with_interval(axes, height, speedup, _ORANGE if name == "all" else _BLUE, row["prompts"])
        axes.annotate(
            f"{speedup['median']:.2f}×  n={row['prompts']}",
            (max(speedup["high"], speedup["median"]), height),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.axvline(1.0, color=_GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [printable(name) for name in rows])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("speedup over all tokens, over plain decoding\n(95 % CI by prompt; one prompt has none: hatched)")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_acceptance(axes: Axes, result: Mapping[str, Any]) -> None:
    depths = result["acceptance_by_depth"]
    shares = {
        depth: counts["accepted"] / counts["offered"]
        for depth, counts in enumerate(depths, start=1)
        if counts["offered"]
    }
    axes.set_xlabel(f"depth of the draft (tokens; grey: offered fewer than {FEW_OFFERS} times)")
    axes.set_ylabel("accepted / offered")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if shares:
        axes.set_xlim(0.4, max(shares) + 0.6)
        colours = [_BLUE if depths[depth - 1]["offered"] >= FEW_OFFERS else _PALE for depth in shares]
        axes.bar(list(shares), list(shares.values()), width=0.7, color=colours, alpha=0.85)
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no drafts were offered", transform=axes.transAxes, ha="center", color=_GREY)
