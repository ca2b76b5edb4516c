"""Acceptance once seen, replayed: what would other draft lengths, thresholds or machines have made of it?

A *trace* is what a sparse path would have drafted at every place of a text that the full model wrote: whether it was
right there, and how sure it was. One parallel forward gives it, and any chain drafter that the path could be is a walk
along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from selfdraft.core.costs import CostCurve

DRAFT_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
CONFIDENCES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Trace:
    """One generated text of n tokens, as a drafter sees it.

    Attributes:
        agrees: (n,) bool, the drafter's token at each place, given the right ones before, is the one written.
        confidence: (n,) its probability in the drafter.
    """

    agrees: np.ndarray
    confidence: np.ndarray


@dataclass
class Walk:
    """What decoding along traces consumed and produced.

    Attributes:
        tokens: emitted. drafted: draft forwards. verified: ``verified[k]`` full forwards of a draft of k tokens.
    """

    tokens: int
    drafted: int
    verified: list[int]

    def seconds(self, verify: CostCurve, draft_s: float) -> float:
        """Time, at `draft_s` seconds a drafted token and `verify(k + 1)` a verification of k."""
        return self.drafted * draft_s + sum(count * verify(k + 1) for k, count in enumerate(self.verified) if count)

    def speedup(self, verify: CostCurve, draft_s: float) -> float:
        """Against decoding the same tokens one forward each."""
        return self.tokens * verify(1) / self.seconds(verify, draft_s)


def walk(traces: Sequence[Trace], draft_length: int, min_confidence: float) -> Walk:
    """Decode along the traces: drafts of up to `draft_length`, ending behind the first token less sure than that.

    A step emits what of its draft is right and one token more. Behind a wrong token the drafter goes on as sure as it
    was at these places given the right text, which is all that a trace knows.
    """
    tokens = drafted = 0
    verified = [0] * (draft_length + 1)
    for trace in traces:
        right, sure = _runs(trace.agrees), _runs(trace.confidence >= min_confidence)
        place, end = 0, len(right)
        while place < end:
            length = min(draft_length, sure[place] + 1, end - place - 1)  # the last token can only be the bonus
            drafted += length
            verified[length] += 1
            place += min(right[place], length) + 1
        tokens += end
    return Walk(tokens, drafted, verified)


def acceptance_by_depth(traces: Sequence[Trace], depth: int) -> list[float]:
    """Share of places from which the first 1, 2, …, `depth` drafted tokens are all right."""
    runs = np.array([run for trace in traces for run in _runs(trace.agrees)])
    return [float((runs >= d).mean()) for d in range(1, depth + 1)]


def agreement(traces: Sequence[Trace]) -> float:
    """SWIFT's matchness: the share of tokens that the path would have drafted right, given the right text before."""
    return float(np.concatenate([trace.agrees for trace in traces]).mean())


@dataclass(frozen=True)
class Choice:
    """The best way to draft along a path, and what it is predicted to give."""

    draft_length: int
    min_confidence: float
    speedup: float


def best_choice(
    traces: Sequence[Trace],
    verify: CostCurve,
    draft_s: float,
    confidence_s: float = 0.0,
    lengths: Sequence[int] = DRAFT_LENGTHS,
    confidences: Sequence[float] = CONFIDENCES,
) -> Choice:
    """The draft length and threshold of the highest predicted speedup.

    Args:
        draft_s: seconds of one sparse forward. confidence_s: what asking for a confidence adds to it.
    """
    choices = (
        Choice(k, c, walk(traces, k, c).speedup(verify, draft_s + (confidence_s if c else 0.0)))
        for k, c in product(lengths, confidences)
        if k > 1 or not c  # a draft of one token asks nobody how sure it is
    )
    return max(choices, key=lambda choice: choice.speedup)


def _runs(flags: np.ndarray) -> list[int]:
    """For every place, how many flags in a row are set from there on."""
    runs, run = [0] * len(flags), 0
    for i in range(len(flags) - 1, -1, -1):
        run = run + 1 if flags[i] else 0
        runs[i] = run
    return runs
