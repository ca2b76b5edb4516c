"""Length rules: decide after each drafted token whether to draft one more.

If a draft is too short, its verification could have accepted more tokens. If it is too long, drafting takes time for
tokens that are rejected. The rules decide by the *confidence* of each drafted token: the probability that the drafting
model gave it.

A rule also chooses how many *leaves* to draft: alternatives to the last token of the chain, after which nothing is
drafted. They are verified in the same forward, and one of them may be accepted in place of that token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul

import numpy as np

from selfdraft.core.costs import CostCurve

# SWIFT's numbers of leaves: `LEAVES_…[i]` for the first i whose `CONFIDENT[i]` is below the token's confidence. So the
# less sure the drafting model is, the more alternatives are verified.
CONFIDENT = (0.95, 0.8, 0.5, -1.0)
LEAVES_GREEDY, LEAVES_SAMPLED = (2, 4, 7, 9), (0, 2, 4, 9)


class DraftLengthRule(ABC):
    """A length rule: decides after each drafted token whether to draft one more, and learns from acceptance.

    Attributes:
        needs_confidence: whether the rule reads the confidences. If not, drafters need not compute them.
    """

    needs_confidence = True

    @abstractmethod
    def goes_on(self, confidences: Sequence[float]) -> bool:
        """Return whether to draft one more token.

        Args:
            confidences: probabilities of the tokens drafted so far; may be empty if the rule does not need them.
        """

    def leaves(
        self, confidences: Sequence[float], rivals: Callable[[], Sequence[float]], size: int, *, sample: bool
    ) -> int:
        """Return how many leaves to draft beside the last token of a chain. The default is SWIFT's numbers.

        Args:
            confidences: probabilities of the chain's tokens.
            rivals: returns the drafting model's probabilities of the possible leaves, the largest first.
            size: number of tokens in the verification so far: the last committed token, the chain and earlier leaves.
            sample: whether leaves are sampled; otherwise they are the most likely tokens.
        """
        level = next(i for i, least in enumerate(CONFIDENT) if confidences[-1] > least)
        return (LEAVES_SAMPLED if sample else LEAVES_GREEDY)[level]

    def verified(self, confidences: Sequence[float]) -> int:
        """Return how many tokens of a finished chain to verify, counted from its first. The default is all."""
        return len(confidences)

    def learn(self, confidences: Sequence[float], accepted: int) -> None:  # noqa: B027  (optional)
        """Learn from a verification. The default is to learn nothing.

        Args:
            confidences: probabilities of the chain's tokens, as far as the target's own tokens are known.
            accepted: number of them that were right, counted from the first.
        """


class Threshold(DraftLengthRule):
    """Stop after the first token with a confidence below `least`; with 0, only the maximum draft length counts."""

    def __init__(self, least: float) -> None:
        self.least, self.needs_confidence = least, least > 0

    def goes_on(self, confidences: Sequence[float]) -> bool:
        """See `DraftLengthRule`."""
        return not self.needs_confidence or confidences[-1] >= self.least


class AdaptiveThreshold(DraftLengthRule):
    """Stop after the first token below a threshold, which follows a wanted acceptance rate.

    After each verification the acceptance rate is updated. If it is below `wanted`, the threshold rises by `step`, so
    drafts end earlier; otherwise it falls by `step`. Rate and threshold are moving averages, with the paper's weights.

    Source: Zhang et al. 2023, arXiv 2309.08168, section 3.3.
    """

    OLD_RATE, OLD_THRESHOLD = 0.5, 0.9  # weights of the values before the update in the two moving averages

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
    """The acceptance rate of drafted tokens by their confidence, learned in ten bins.

    The confidence of a drafting model need not be the rate at which its tokens are accepted, so that rate is counted.
    Before any token is counted, the rate of a bin is the middle of the bin.
    """

    BINS, PRIOR = 10, 4.0  # PRIOR: number of counted tokens that the initial rate of a bin counts as

    def __init__(self) -> None:
        self._offered = np.full(self.BINS, self.PRIOR)
        self._accepted = self.PRIOR * (np.arange(self.BINS) + 0.5) / self.BINS

    def _bin(self, confidence: float) -> int:
        return min(int(confidence * self.BINS), self.BINS - 1)

    def __call__(self, confidence: float) -> float:
        """Return the probability that a token with this confidence is accepted, given that all tokens before it are."""
        b = self._bin(confidence)
        return float(self._accepted[b] / self._offered[b])

    def learn(self, confidences: Sequence[float], accepted: int) -> None:
        """Count the accepted tokens and the first rejected one. Nothing is known about the tokens after that.

        Args:
            confidences: probabilities of the chain's tokens, as far as the target's own tokens are known.
            accepted: number of them that were right, counted from the first.
        """
        for depth, confidence in enumerate(confidences[: accepted + 1]):
            self._offered[self._bin(confidence)] += 1
            self._accepted[self._bin(confidence)] += depth < accepted

    def reaches(self, confidences: Sequence[float]) -> list[float]:
        """Return, for each token of a chain, the probability that it and all tokens before it are accepted."""
        return list(accumulate(map(self, confidences), mul))


class ExpectedGain(DraftLengthRule):
    """Draft one more token as long as it raises the expected tokens per second of the step.

    1. A chain of n tokens is expected to write 1 + (sum of the probabilities that each token is accepted) tokens; the
       one is the bonus token.
    2. It costs n drafting forwards and a verification of n + 1 tokens.
    3. One more token pays if (the probability that it is accepted) / (the seconds that it adds) exceeds the expected
       tokens per second of the step without it. Its confidence is not known yet, so that of the last token is used.

    Attributes:
        full: seconds of a full forward by its number of tokens.
        draft_seconds: seconds of one drafting forward.
        calibration: acceptance rates by confidence.
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
        """Return how many leaves pay, by the same comparison. Their probabilities are used without calibration."""
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
        """Return how many tokens pay, by the same comparison, now that the confidence of the last one is known too."""
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
        acceptance: probability that a drafted token is accepted, given that all tokens before it are; the same at
            every depth.
        draft_seconds: seconds of one drafting forward.
        full: seconds of a full forward of the target by its number of tokens.
        longest: longest draft length to try, in tokens.
    """
    lengths = np.arange(1, longest + 1)
    emitted = 1 + np.cumsum(acceptance**lengths)
    seconds = lengths * draft_seconds + np.array([full(n + 1) for n in lengths])
    return float((emitted / seconds).max() * full(1))
