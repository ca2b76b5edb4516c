"""How often a source is right: an estimate from counts that fade."""

from __future__ import annotations

from dataclasses import dataclass

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
