"""Tokens and seconds of one contender: summed over turns first, and divided once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from selfdraft.tracking.files.records import Line


class Pace(NamedTuple):
    """Tokens that one contender decoded, and the seconds that it took, without prefill."""

    tokens: int
    seconds: float

    @property
    def rate(self) -> float | None:
        """Tokens per second; None if nothing was decoded, or too little to be timed."""
        return self.tokens / self.seconds if self.tokens > 0 and self.seconds > 0 else None


Contender = Callable[[Line], Pace]


def drafter_pace(line: Line) -> Pace:
    """Return the drafter's pace on one turn."""
    return Pace(line["new_tokens"], line["decode_s"])


def baseline_pace(line: Line) -> Pace:
    """Return the pace of plain decoding on the same turn, with the same kernels."""
    return Pace(line["baseline_new_tokens"], line["baseline_decode_s"])


def total(lines: Sequence[Line], pace: Contender) -> Pace:
    """Return the summed tokens and seconds of all turns."""
    paces = [pace(line) for line in lines]
    return Pace(sum(each.tokens for each in paces), sum(each.seconds for each in paces))


def ratio(ours: Pace, theirs: Pace) -> float | None:
    """Return the ratio of two token rates; None if either has none."""
    return ours.rate / theirs.rate if ours.rate and theirs.rate else None


def speedup_of(line: Line) -> float | None:
    """Return the paired ratio of token rates, drafter over baseline, on one turn; None if either has no rate."""
    return ratio(drafter_pace(line), baseline_pace(line))
