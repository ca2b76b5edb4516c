"""When to stop drafting: rules that look at how sure the drafter was of each token of a chain.

A *confidence* is the probability that the drafting model gave the token it drafted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import numpy as np

from selfdraft.core.costs import CostCurve


class Rule(ABC):
    """Decides behind every drafted token whether one more is drafted, and learns from what was accepted."""

    needs_confidence = True

    @abstractmethod
    def goes_on(self, confidences: Sequence[float]) -> bool:
        """Whether to draft behind a chain with these confidences."""

    def learn(self, confidences: Sequence[float], accepted: int) -> None:  # noqa: B027  (optional)
        """Of a chain with these confidences, the first `accepted` tokens stood."""


class Threshold(Rule):
    """Stop behind the first token less sure than `least`; 0 leaves the length to its limit alone."""

    def __init__(self, least: float) -> None:
        self.least, self.needs_confidence = least, least > 0

    def goes_on(self, confidences: Sequence[float]) -> bool:
        """See `Rule`."""
        return not self.needs_confidence or confidences[-1] >= self.least


class AdaptiveThreshold(Rule):
    """A threshold that moves towards a wanted acceptance rate (Zhang et al. 2023, arXiv 2309.08168, section 3.3).

    The rate is smoothed by 0.5; the threshold moves by `step` and is itself smoothed by 0.9, as in the paper.
    """

    OLD_RATE, OLD_THRESHOLD = 0.5, 0.9

    def __init__(self, start: float = 0.6, wanted: float = 0.9, step: float = 0.01) -> None:
        self.threshold, self.wanted, self.step = start, wanted, step
        self.rate = wanted

    def goes_on(self, confidences: Sequence[float]) -> bool:
        """See `Rule`."""
        return confidences[-1] >= self.threshold

    def learn(self, confidences: Sequence[float], accepted: int) -> None:
        """See `Rule`."""
        if not confidences:
            return
        self.rate = self.OLD_RATE * self.rate + (1 - self.OLD_RATE) * accepted / len(confidences)
        moved = self.threshold + (self.step if self.rate < self.wanted else -self.step)
        self.threshold = self.OLD_THRESHOLD * self.threshold + (1 - self.OLD_THRESHOLD) * min(max(moved, 0.0), 1.0)


class Calibration:
    """How often tokens of some confidence stood, in ten bins that begin at the confidence itself."""

    BINS, PRIOR = 10, 4.0  # what a bin says at first counts as much as four tokens do

    def __init__(self) -> None:
        self._offered = np.full(self.BINS, self.PRIOR)
        self._stood = self.PRIOR * (np.arange(self.BINS) + 0.5) / self.BINS

    def _bin(self, confidence: float) -> int:
        return min(int(confidence * self.BINS), self.BINS - 1)

    def __call__(self, confidence: float) -> float:
        """The probability that such a token stands, given that those before it do."""
        b = self._bin(confidence)
        return float(self._stood[b] / self._offered[b])

    def learn(self, confidences: Sequence[float], accepted: int) -> None:
        """Count the tokens that stood, and the first that did not; nothing is known about those behind it."""
        for depth, confidence in enumerate(confidences[: accepted + 1]):
            self._offered[self._bin(confidence)] += 1
            self._stood[self._bin(confidence)] += depth < accepted

    def reaches(self, confidences: Sequence[float]) -> list[float]:
        """Per token of a chain, the probability that it and all before it stand."""
        return list(accumulate(map(self, confidences), mul))


class ExpectedGain(Rule):
    """Draft on while that raises the expected tokens per second of the step.

    A chain of n tokens is expected to emit 1 + (sum of the probabilities that each is reached) and costs n drafting
    forwards and a verification of n + 1 tokens. One more pays if its own tokens per second exceed those of the step. Of
    the next token nothing is known yet: it is taken to be as sure as the last one.
    """

    def __init__(self, full: CostCurve, draft_seconds: float) -> None:
        self.full, self.draft_seconds, self.calibration = full, draft_seconds, Calibration()

    def goes_on(self, confidences: Sequence[float]) -> bool:
        """See `Rule`."""
        n = len(confidences)
        reached = self.calibration.reaches(confidences)
        gain = reached[-1] * self.calibration(confidences[-1])
        extra = self.draft_seconds + self.full(n + 2) - self.full(n + 1)
        seconds = n * self.draft_seconds + self.full(n + 1)
        return gain * seconds > (1 + sum(reached)) * extra

    def leaves(self, confidences: Sequence[float], rivals: Sequence[float], size: int) -> int:
        """How many leaves beside the last token of a chain pay, by the same account.

        Args:
            rivals: the draft's probabilities of them, falling; taken as they are. size: tokens of the verification
                without them, the root included.
        """
        reached = self.calibration.reaches(confidences)
        before = reached[-2] if len(reached) > 1 else 1.0
        tokens, seconds = 1 + sum(reached), len(confidences) * self.draft_seconds + self.full(size)
        for count, rival in enumerate(rivals):
            extra = self.full(size + count + 1) - self.full(size + count)
            if before * rival * seconds <= tokens * extra:
                return count
            tokens, seconds = tokens + before * rival, seconds + extra
        return len(rivals)

    def learn(self, confidences: Sequence[float], accepted: int) -> None:
        """See `Rule`."""
        self.calibration.learn(confidences, accepted)


def best_speedup(acceptance: float, draft_seconds: float, full: CostCurve, longest: int) -> float:
    """Tokens per second against plain decoding, at the best draft length up to `longest`.

    Args:
        acceptance: the probability that a drafted token stands where those before it do, the same at every depth.
    """
    lengths = np.arange(1, longest + 1)
    emitted = 1 + np.cumsum(acceptance**lengths)
    seconds = lengths * draft_seconds + np.array([full(n + 1) for n in lengths])
    return float((emitted / seconds).max() * full(1))
