"""What a draft is expected to gain, against what it costs: so many tokens of one source, then so many of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selfdraft.core.costs import CostCurve

# How often looked-up tokens are right before anything is known, by the length of the n-gram that matched; the last
# number holds for longer ones too.
LOOKUP_PRIORS = (0.4, 0.6, 0.75)
FADING = 0.98  # what a trial still counts a step later


def lookup_prior(matched: int) -> float:
    """Of `LOOKUP_PRIORS`, that of a match of so many tokens."""
    return LOOKUP_PRIORS[min(matched, len(LOOKUP_PRIORS)) - 1]


@dataclass
class Rate:
    """How often a source is right, estimated from counts that fade; what is known is mixed with a prior.

    Attributes:
        prior: the rate before anything is known. weight: how many trials that is worth.
    """

    prior: float
    weight: float = 3.0
    right: float = 0.0
    trials: float = 0.0

    def __call__(self) -> float:
        """The estimate, below 1."""
        return min((self.right + self.weight * self.prior) / (self.trials + self.weight), 0.99)

    def fade(self, share: float) -> None:
        """Forget: left alone, the estimate returns to the prior, so that a source is tried again one day."""
        self.right, self.trials = self.right * share, self.trials * share

    def learn(self, accepted: int, offered: int) -> None:
        """A run of `offered` tokens was right in its first `accepted`; those behind the first wrong one say nothing."""
        self.right += accepted
        self.trials += accepted + (accepted < offered)


@dataclass(frozen=True)
class Plan:
    """So many tokens looked up, so many more from the sparse model behind them, and the speedup expected of it."""

    looked_up: int
    sparse: int
    speedup: float


class Planner:
    """Weighs every plan of up to L tokens looked up and S sparse ones, at the costs of this machine."""

    def __init__(self, verify: CostCurve, sparse: CostCurve, looked_up: int, sparse_tokens: int) -> None:
        """Take costs.

        Args:
            verify: of full forwards. sparse: of forwards through the sparse path, which reads what was looked up in one
                forward and gives the first token of its own with it.
        """
        first, more = np.arange(looked_up + 1)[:, None], np.arange(sparse_tokens + 1)[None, :]
        verifying = np.array([[verify(1 + a + b) for b in more[0]] for a in first[:, 0]])
        reading = np.array([sparse(1 + a) for a in first[:, 0]])[:, None]
        self.seconds = verifying + np.where(more > 0, reading + (more - 1) * sparse(1), 0.0)  # (L + 1, S + 1)
        self.plain_s = verify(1)

    def best(self, rate: float, found: int, sparse_rate: float, room: int) -> Plan:
        """The plan that drafts something and promises the most tokens per second.

        Args:
            rate: that a looked-up token is right, given the one before was. found: how many there are.
            sparse_rate: the same of sparse tokens. room: the most tokens that may be drafted.
        """
        rows, columns = self.seconds.shape
        first, more = np.arange(rows)[:, None], np.arange(columns)[None, :]
        looked_up = np.cumsum(rate ** np.arange(rows))[:, None]  # 1 for the token that every step emits
        behind = np.concatenate([[0.0], np.cumsum(sparse_rate ** np.arange(1, columns))])[None, :]
        speedups = (looked_up + rate**first * behind) * self.plain_s / self.seconds
        allowed = (first <= found) & (first + more <= room) & (first + more > 0)
        if not allowed.any():
            return Plan(0, 0, 1.0)
        speedups = np.where(allowed, speedups, -1.0)
        a, b = np.unravel_index(int(speedups.argmax()), speedups.shape)
        return Plan(int(a), int(b), float(speedups[a, b]))
