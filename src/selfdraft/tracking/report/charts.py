"""Where the marks of each chart are: numbers for the templates, which draw them. Nothing here knows HTML or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import ceil, floor, log10
from operator import itemgetter
from typing import Any, NamedTuple

from selfdraft.tracking.report.rows import Row, Speedup, acceptance_of, phases_of

SERIES = 8  # contenders with a colour and a shape of their own in a chart; there are no more that an eye tells apart
WIDTH, HEIGHT = 640, 300  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 14, 46  # its margins
LABEL = 100  # width of the label of a line
TOPS = (0.2, 0.5, 1.0)  # of the axis of acceptance
COSTS = (1.0, 1.5, 2.0)  # of a step, in steps of plain decoding, whose lines the scatter plot has


class Bar(NamedTuple):
    """A bar on a track, in percent of the track's width; `low` and `high` are None where no interval is drawn."""

    width: float
    low: float | None
    high: float | None
    is_single: bool


class Tick(NamedTuple):
    """A mark on an axis: its place, and what is written there."""

    at: float
    text: str


class Mark(NamedTuple):
    """A point in a chart. `is_known` is false where too little was counted to say anything."""

    x: float
    y: float
    title: str
    is_known: bool = True


@dataclass(frozen=True)
class Series:
    """The marks of one contender, and its number among the colours and shapes."""

    label: str
    number: int
    marks: list[Mark]

    @property
    def lines(self) -> list[tuple[bool, list[Mark]]]:
        """Return the lines that join the marks, and whether each joins only known ones."""
        pairs = [(first.is_known and second.is_known, first, second) for first, second in pairwise(self.marks)]
        return [
            (is_known, [*(first for _, first, _ in group), group[-1][2]])
            for is_known, group in ((each, list(found)) for each, found in groupby(pairs, key=itemgetter(0)))
        ]


@dataclass(frozen=True)
class Chart:
    """A chart with two axes.

    Attributes:
        lines: straight lines that readers compare with, each `(x1, y1, x2, y2, text)`.
    """

    series: list[Series]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[tuple[float, float, float, float, str]]


def bars(speedups: Sequence[Speedup]) -> tuple[list[Bar], float]:
    """Return a bar for each speedup, all on one scale, and the place of 1 on it, in percent."""
    most = max((high for each in speedups for high in (each.value, each.high) if high is not None), default=1.0)
    whole = max(1.05 * most, 1.25)

    def percent(value: float) -> float:
        return round(100 * value / whole, 2)

    found = []
    for each in speedups:
        low, high = (each.low, each.high) if each.has_interval else (None, None)
        found.append(
            Bar(
                percent(each.value or 0.0),
                None if low is None else percent(low),
                None if high is None else percent(high),
                each.prompts == 1,
            )
        )
    return found, percent(1.0)


def acceptance(rows: Sequence[Row]) -> Chart | None:
    """Return acceptance by depth; None if nothing was drafted."""
    found = [(row, acceptance_of(row.measures)) for row in rows]
    found = [(row, depths) for row, depths in found if depths][:SERIES]
    if not found:
        return None
    deepest = max(len(depths) for _, depths in found)
    x, x_ticks = _axis(1, max(deepest, 2), LEFT, WIDTH - RIGHT, whole=True)
    best = max(each["share"] for _, depths in found for each in depths)
    y, y_ticks = _axis(0.0, next(top for top in TOPS if best <= top), HEIGHT - BOTTOM, TOP, percent=True)
    series = [
        Series(
            row.label,
            number,
            [
                Mark(x(depth), y(each["share"]), _offers(row, depth, each), each["known"])
                for depth, each in enumerate(depths, start=1)
            ],
        )
        for number, (row, depths) in enumerate(found)
    ]
    return Chart(series, x_ticks, y_ticks, [])


def scatter(rows: Sequence[Row]) -> Chart | None:
    """Return tokens per forward against speedup, with the lines of break-even and of what a step costs."""
    points = [(row, row.measures["tokens_per_forward"], row.speedup.value) for row in rows]
    known = [(row, tokens, value) for row, tokens, value in points if tokens and value and not row.is_plain][:SERIES]
    if not known:
        return None
    widest, tallest = max(tokens for _, tokens, _ in known), max(value for _, _, value in known)
    right, top = max(1.1 * widest, 1.5), max(1.15 * tallest, 1.25)
    x, x_ticks = _axis(1.0, right, LEFT, WIDTH - RIGHT)
    y, y_ticks = _axis(0.0, top, HEIGHT - BOTTOM, TOP)
    lines = [(x(1.0), y(1.0), x(right), y(1.0), "break-even: as fast as plain decoding")]
    for cost in COSTS:
        end = min(right, top * cost)
        is_free = x(end) - LEFT > LABEL and all(
            abs(x(end) - x2) > LABEL or abs(y(end / cost) - y2) > 16 for _, _, x2, y2, _ in lines[1:]
        )
        if is_free:  # else its label would lie over another line's
            lines.append((x(1.0), y(1.0 / cost), x(end), y(end / cost), f"a step costs {cost:g}"))
    series = [
        Series(row.label, number, [Mark(x(tokens), y(value), f"{row.label}: {tokens:.2f}, {value:.2f}×")])
        for number, (row, tokens, value) in enumerate(known)
    ]
    return Chart(series, x_ticks, y_ticks, lines)


def training(history: Sequence[dict[str, Any]], watched: str) -> Chart | None:
    """Return the curve of a fine-tuning: the quantity that it watched, by step; a short one may have one validation."""
    points = [(line["step"], line[watched]) for line in history if line.get(watched) is not None]
    if not points:
        return None
    x, x_ticks = _axis(0, max(1, *(step for step, _ in points)), LEFT, WIDTH - RIGHT, whole=True)
    y, y_ticks = _axis(0.0, 1.1 * max(value for _, value in points) or 1.0, HEIGHT - BOTTOM, TOP)
    marks = [Mark(x(step), y(value), f"step {step}: {value:.3f}") for step, value in points]
    return Chart([Series(watched, 0, marks)], x_ticks, y_ticks, [])


def phases(rows: Sequence[Row]) -> list[tuple[Row, dict[str, tuple[float, float]], float]]:
    """Return for each row its phases, see `phases_of`, and the length of its bar in percent of the longest one."""
    found = [(row, phases_of(row.measures)) for row in rows]
    known = [(row, each) for row, each in found if each]
    longest = max((sum(ms for ms, _ in each.values()) for _, each in known), default=1.0)
    return [(row, each, 100 * sum(ms for ms, _ in each.values()) / longest) for row, each in known]


def _offers(row: Row, depth: int, each: dict[str, Any]) -> str:
    return f"{row.label}, depth {depth}: {each['share']:.0%} ({each['accepted']:,} of {each['offered']:,})"


def _axis(low: float, high: float, begin: float, end: float, *, whole: bool = False, percent: bool = False) -> Any:
    """Return the function from values to places between `begin` and `end`, and ticks at round values."""
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(begin + (end - begin) * (value - low) / span, 1)

    step = _round_step(span / 6)
    if whole:
        step = max(1.0, ceil(step))
    first = ceil(low / step - 1e-9)
    values = [n * step for n in range(first, floor(high / step + 1e-9) + 1)]
    return place, [Tick(place(value), f"{value:.0%}" if percent else f"{value:g}") for value in map(_tidy, values)]


def _round_step(rough: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is no less than `rough`."""
    power = 10.0 ** floor(log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _tidy(value: float) -> float:
    return round(value, 10)
