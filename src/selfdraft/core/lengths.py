"""Length rules: decide after each drafted token whether to draft one more.

Too short a draft wastes a verification that could have accepted more; too long a draft wastes drafting on tokens that
will be rejected. The rules decide by the *confidence* of the drafted tokens: their probability in the drafting model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul

import numpy as np

from selfdraft.core.costs import CostCurve

# SWIFT's thresholds of a drafted token's confidence, and the leaves beside the token above each:
CONFIDENT = (0.95, 0.8, 0.5, -1.0)
LEAVES_GREEDY, LEAVES_SAMPLED = (2, 4, 7, 9), (0, 2, 4, 9)


class DraftLengthRule(ABC):
    """A length rule: decides after each drafted token whether to draft one more, and learns from acceptance."""

    needs_confidence = True

    @abstractmethod
    def goes_on(self, confidences: Sequence[float]) -> bool:
        """Return whether to draft one more token after a chain with these confidences."""

    def leaves(
        self, confidences: Sequence[float], rivals: Callable[[], Sequence[float]], size: int, *, sample: bool
    ) -> int:
        """Return how many leaves to draft beside the last token of a chain: by default, SWIFT's numbers.

        Args:
            confidences: those of the chain.
            rivals: returns the draft's probabilities of the leaves in descending order.
            size: tokens of the verification without the leaves, the root included.
            sample: whether the leaves are drawn.
        """
        level = next(i for i, least in enumerate(CONFIDENT) if confidences[-1] > least)
        return (LEAVES_SAMPLED if sample else LEAVES_GREEDY)[level]

    def verified(self, confidences: Sequence[float]) -> int:
        """Return how many first tokens of a finished chain are worth verifying: by default, all."""
        return len(confidences)

    def learn(self, confidences: Sequence[float], accepted: int) -> None:  # noqa: B027  (optional)
        """Learn that the first `accepted` tokens of a chain with these confidences were accepted."""


class Threshold(DraftLengthRule):
    """Stop after the first token with a confidence below `least`; with 0, only the length limit applies."""

    def __init__(self, least: float) -> None:
        self.least, self.needs_confidence = least, least > 0

    def goes_on(self, confidences: Sequence[float]) -> bool:
        """See `DraftLengthRule`."""
        return not self.needs_confidence or confidences[-1] >= self.least


class AdaptiveThreshold(DraftLengthRule):
    """A threshold that is adjusted to a wanted acceptance rate (Zhang et al. 2023, arXiv 2309.08168, section 3.3).

    The rate is smoothed by 0.5; the threshold moves by `step` and is itself smoothed by 0.9, as in the paper.
    """

    OLD_RATE, OLD_THRESHOLD = 0.5, 0.9

    def __init__(self, start: float = 0.6, wanted: float = 0.9, step: float = 0.01) -> None:
        self.threshold, self.wanted, self.step = start, wanted, step
        self.rate = wanted

    def goes_on(self, confidences: Sequence[float]) -> bool:
        """See `DraftLengthRule`."""
        return confidences[-1] >= self.threshold

    def learn(self, confidences: Sequence[float], accepted: int) -> None:
        """See `DraftLengthRule`."""
        if not confidences:
            return
        self.rate = self.OLD_RATE * self.rate + (1 - self.OLD_RATE) * accepted / len(confidences)
        moved = self.threshold + (self.step if self.rate < self.wanted else -self.step)
        self.threshold = self.OLD_THRESHOLD * self.threshold + (1 - self.OLD_THRESHOLD) * min(max(moved, 0.0), 1.0)


class Calibration:
    """Acceptance rate by confidence, in ten bins; before any token is seen, it is the middle of the bin."""

    BINS, PRIOR = 10, 4.0  # the initial rate of a bin counts as much as four tokens

    def __init__(self) -> None:
        self._offered = np.full(self.BINS, self.PRIOR)
        self._stood = self.PRIOR * (np.arange(self.BINS) + 0.5) / self.BINS

    def _bin(self, confidence: float) -> int:
        return min(int(confidence * self.BINS), self.BINS - 1)

    def __call__(self, confidence: float) -> float:
        """Return the probability that a token with this confidence is accepted, given that those before it are."""
        b = self._bin(confidence)
        return float(self._stood[b] / self._offered[b])

    def learn(self, confidences: Sequence[float], accepted: int) -> None:
        """Count the accepted tokens and the first rejected one; nothing is known about those after it."""
        for depth, confidence in enumerate(confidences[: accepted + 1]):
            self._offered[self._bin(confidence)] += 1
            self._stood[self._bin(confidence)] += depth < accepted

    def reaches(self, confidences: Sequence[float]) -> list[float]:
        """Return, for each token of a chain, the probability that it and all before it are accepted."""
        return list(accumulate(map(self, confidences), mul))


class ExpectedGain(DraftLengthRule):
    """Draft one more token as long as it raises the expected tokens per second of the step.

    A chain of n tokens is expected to emit 1 + (sum of the probabilities that each token is accepted). It costs n
    drafting forwards and a verification of n + 1 tokens. One more token pays if its own tokens per second exceed those
    of the step. Its confidence is not known yet, so that of the last token is used.
    """

    def __init__(self, full: CostCurve, draft_seconds: float) -> None:
        self.full, self.draft_seconds, self.calibration = full, draft_seconds, Calibration()

    def goes_on(self, confidences: Sequence[float]) -> bool:
        """See `DraftLengthRule`."""
        n = len(confidences)
        reached = self.calibration.reaches(confidences)
        gain = reached[-1] * self.calibration(confidences[-1])
        extra = self.draft_seconds + self.full(n + 2) - self.full(n + 1)
        seconds = n * self.draft_seconds + self.full(n + 1)
        return gain * seconds > (1 + sum(reached)) * extra

    def leaves(
        self, confidences: Sequence[float], rivals: Callable[[], Sequence[float]], size: int, *, sample: bool
    ) -> int:
        """Return how many leaves pay, by the same comparison; their probabilities are used without calibration."""
        reached = self.calibration.reaches(confidences)
        before = reached[-2] if len(reached) > 1 else 1.0
        tokens, seconds = 1 + sum(reached), len(confidences) * self.draft_seconds + self.full(size)
        chances = rivals()
        for count, rival in enumerate(chances):
            extra = self.full(size + count + 1) - self.full(size + count)
            if before * rival * seconds <= tokens * extra:
                return count
            tokens, seconds = tokens + before * rival, seconds + extra
        return len(chances)

    def verified(self, confidences: Sequence[float]) -> int:
        """Return how many tokens pay, by the same comparison: the last one's confidence is known only now."""
        reached = self.calibration.reaches(confidences)
        drafting = len(confidences) * self.draft_seconds
        for n in range(len(confidences), 0, -1):
            extra = self.full(n + 1) - self.full(n)
            if reached[n - 1] * (drafting + self.full(n)) > (1 + sum(reached[: n - 1])) * extra:
                return n
        return 0

    def learn(self, confidences: Sequence[float], accepted: int) -> None:
        """See `DraftLengthRule`."""
        self.calibration.learn(confidences, accepted)


def best_speedup(acceptance: float, draft_seconds: float, full: CostCurve, longest: int) -> float:
    """Return the speedup over plain decoding at the best draft length up to `longest`.

    Args:
        acceptance: the probability that a drafted token is accepted given that those before it are, at every depth.
        draft_seconds: seconds of one drafting forward.
        full: cost of a target forward.
        longest: the longest draft length to try.
    """
    lengths = np.arange(1, longest + 1)
    emitted = 1 + np.cumsum(acceptance**lengths)
    seconds = lengths * draft_seconds + np.array([full(n + 1) for n in lengths])
    return float((emitted / seconds).max() * full(1))
