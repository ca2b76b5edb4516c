"""Replay recorded acceptance: predict the speedup with other draft lengths, thresholds or machines.

A *trace* records, for every position of a text that the full model wrote, whether a sparse path would have drafted the
right token there, and with what confidence. One parallel forward gives the whole trace. Decoding with any chain drafter
on that path is then a walk along the trace.
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
    """A drafter's tokens along one generated text of n tokens.

    Attributes:
        agrees: (n,) bool, whether the drafter's token, given the true tokens before it, is the true one.
        confidence: (n,) the drafter's probability of its token.
    """

    agrees: np.ndarray
    confidence: np.ndarray


@dataclass
class Walk:
    """Counts of tokens and forwards of a decoding along traces.

    Attributes:
        tokens: emitted tokens.
        drafted: draft forwards.
        verified: ``verified[k]`` full forwards verified a draft of k tokens.
    """

    tokens: int
    drafted: int
    verified: list[int]

    def seconds(self, verify: CostCurve, draft_s: float) -> float:
        """Return the time, with `draft_s` seconds per drafted token and `verify(k + 1)` per verification of k."""
        return self.drafted * draft_s + sum(count * verify(k + 1) for k, count in enumerate(self.verified) if count)

    def speedup(self, verify: CostCurve, draft_s: float) -> float:
        """Return the speedup over decoding the same tokens with one forward each."""
        return self.tokens * verify(1) / self.seconds(verify, draft_s)


def walk(traces: Sequence[Trace], draft_length: int, min_confidence: float) -> Walk:
    """Decode along the traces with drafts of up to `draft_length` tokens.

    A draft ends after the first token with a confidence below `min_confidence`. Each step emits the right tokens of its
    draft and one more. After a wrong token the drafter's confidences are taken from the trace, although they belong to
    the right text, because a trace has no others.
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
    """Return the share of positions from which the first 1, 2, …, `depth` drafted tokens are all right."""
    runs = np.array([run for trace in traces for run in _runs(trace.agrees)])
    return [float((runs >= d).mean()) for d in range(1, depth + 1)]


def agreement(traces: Sequence[Trace]) -> float:
    """Return SWIFT's matchness: the share of tokens that the path drafts right, given the true text before them."""
    return float(np.concatenate([trace.agrees for trace in traces]).mean())


@dataclass(frozen=True)
class Choice:
    """The best draft length and threshold for a path, and the predicted speedup."""

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
    """Return the draft length and threshold with the highest predicted speedup.

    Args:
        traces: the path's traces.
        verify: cost of a target forward.
        draft_s: seconds of one sparse forward.
        confidence_s: seconds that computing a confidence adds to it.
        lengths, confidences: the draft lengths and thresholds to try.
    """
    choices = (
        Choice(k, c, walk(traces, k, c).speedup(verify, draft_s + (confidence_s if c else 0.0)))
        for k, c in product(lengths, confidences)
        if k > 1 or not c  # a draft of one token needs no confidence
    )
    return max(choices, key=lambda choice: choice.speedup)


def _runs(flags: np.ndarray) -> list[int]:
    """Return, for every position, how many flags in a row are set from there on."""
    runs, run = [0] * len(flags), 0
    for i in range(len(flags) - 1, -1, -1):
        run = run + 1 if flags[i] else 0
        runs[i] = run
    return runs
