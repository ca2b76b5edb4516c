"""The cost of a forward by its number of tokens, interpolated between measured points.

Costs are in seconds. Every decision by cost (trees, draft lengths, skip sets, the guard) uses this one structure, so a
curve measured on another machine can take the place of this machine's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol


@dataclass(frozen=True)
class CostCurve:
    """Seconds of one forward of ``sizes[i]`` tokens in one row, the root included. Sizes ascend, seconds never fall."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    @staticmethod
    def measured(sizes: Sequence[float], seconds: Sequence[float]) -> CostCurve:
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

    def up_to(self, size: int) -> Sequence[float]:
        """Return the seconds of forwards of 1, 2, … `size` tokens; drafters that grow trees ask at every step."""
        return _up_to(self, size)

    def shared_by(self, rows: int) -> CostCurve:
        """Return the cost per row of a batched forward of `rows` rows, by the tokens of each row.

        The cost of a forward is assumed to depend on its total number of tokens, so drafts pay less in a batch.
        """
        return self if rows == 1 else CostCurve(*(tuple(x / rows for x in xs) for xs in (self.sizes, self.seconds)))

    def relative(self, size: float) -> float:
        """Return the cost of a forward of `size` tokens as a multiple of that of one token."""
        return self(size) / self(1)


@lru_cache(maxsize=64)
def _up_to(curve: CostCurve, size: int) -> tuple[float, ...]:
    return tuple(curve(tokens) for tokens in range(1, size + 1))


class Shaped(Protocol):
    """A part of the model; parts of equal shapes cost the same if they are run in the same way."""

    @property
    def shape(self) -> Hashable:
        """What the cost depends on."""
        ...


class Costs:
    """What forwards cost on this machine: made once with the bench, and handed to drafters and the guard.

    A curve is measured when it is first asked for. Measuring overwrites the target's cache, so drafters ask while they
    are made or while no request is decoded (`Drafter.settle`), never in the middle of a request.
    """

    def __init__(
        self,
        measure: Callable[[Shaped | None], CostCurve],
        alike: Callable[[Shaped], Hashable] = lambda path: path.shape,
    ) -> None:
        """Take what measures.

        Args:
            measure: measures forwards of a part of the model, or of the full model for None.
            alike: equal for parts that cost the same. Where parts may be compiled, their shapes do not say this.
        """
        self._measure, self.alike = measure, alike
        self._full: CostCurve | None = None
        self._parts: dict[Hashable, CostCurve] = {}

    def full(self) -> CostCurve:
        """Return the cost of full forwards; measuring takes about a second."""
        if self._full is None:
            self._full = self._measure(None)
        return self._full

    def of(self, path: Shaped) -> CostCurve:
        """Return the cost of small blocks on a path, measured once for paths that are alike."""
        kind = self.alike(path)
        if kind not in self._parts:
            self._parts[kind] = self._measure(path)
        return self._parts[kind]
