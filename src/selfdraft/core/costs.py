"""What a forward costs against how many tokens it takes: measured points, and what lies between them.

Seconds throughout. Whatever decides by cost (trees, draft lengths, skip sets, the guard) asks this one structure, so
that a curve measured elsewhere can stand in for the machine at hand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CostCurve:
    """Seconds of one forward of ``sizes[i]`` tokens in one row, the root included. Sizes ascend, seconds never fall."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    @staticmethod
    def measured(sizes: Sequence[int], seconds: Sequence[float]) -> CostCurve:
        """A curve through measured points, noise that makes more tokens look cheaper than fewer levelled out."""
        level, rising = 0.0, []
        for value in seconds:
            level = max(level, value)
            rising.append(level)
        return CostCurve(tuple(sizes), tuple(rising))

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.seconds) or len(self.sizes) < 2:
            raise ValueError("a cost curve needs two points or more, and a time for each")
        if list(self.sizes) != sorted(set(self.sizes)) or list(self.seconds) != sorted(self.seconds):
            raise ValueError("sizes of a cost curve must ascend, and its seconds must not fall")

    def __call__(self, size: float) -> float:
        """Seconds of a forward of `size` tokens: linear between the points, and on along the last (or first) slope."""
        right = min(max(bisect_right(self.sizes, size), 1), len(self.sizes) - 1)
        (x0, x1), (y0, y1) = self.sizes[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return max(y0 + (y1 - y0) * (size - x0) / (x1 - x0), 0.0)

    def shared_by(self, rows: int) -> CostCurve:
        """Of a forward in which each of `rows` rows has so many tokens, one row's share of the seconds.

        What a forward costs is taken to hang on how many tokens it has in all: a batch leaves less room for guesses.
        """
        return self if rows == 1 else CostCurve(*(tuple(x / rows for x in xs) for xs in (self.sizes, self.seconds)))

    def relative(self, size: float) -> float:
        """In forwards of one token."""
        return self(size) / self(1)
