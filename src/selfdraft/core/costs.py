"""The cost of a forward by its number of tokens, interpolated between measured points.

Costs are in seconds. Every decision by cost (trees, draft lengths, skip sets, the guard) uses this one structure, so a
curve measured on another machine can take the place of this machine's.
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
        """Return a curve through measured points; where noise makes more tokens look cheaper, it is made flat."""
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
        """Return the seconds of a forward of `size` tokens: linear between points, and beyond them by the end slope."""
        right = min(max(bisect_right(self.sizes, size), 1), len(self.sizes) - 1)
        (x0, x1), (y0, y1) = self.sizes[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return max(y0 + (y1 - y0) * (size - x0) / (x1 - x0), 0.0)

    def shared_by(self, rows: int) -> CostCurve:
        """Return the cost per row of a batched forward of `rows` rows, by the tokens of each row.

        The cost of a forward is assumed to depend on its total number of tokens, so drafts pay less in a batch.
        """
        return self if rows == 1 else CostCurve(*(tuple(x / rows for x in xs) for xs in (self.sizes, self.seconds)))

    def relative(self, size: float) -> float:
        """Return the cost of a forward of `size` tokens as a multiple of that of one token."""
        return self(size) / self(1)
