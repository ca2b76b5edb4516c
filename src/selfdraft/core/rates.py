"""Estimate how often a source is right, from counts that fade with time."""

from __future__ import annotations

from dataclasses import dataclass

# Prior probabilities that the first looked-up token is right, and one after a right one, for matched n-grams of 1, 2
# and 3 or more tokens. SmolLM2's answers to Spec-Bench had (0.21, 0.58), (0.51, 0.70) and (0.75, 0.80).
LOOKUP_PRIORS = ((0.2, 0.5), (0.5, 0.65), (0.75, 0.75))
FADING = 0.98  # weight of a trial one step later


def lookup_priors(matched: int) -> tuple[float, float]:
    """Return the entry of `LOOKUP_PRIORS` for a match of `matched` tokens: of the first token, and of later ones."""
    return LOOKUP_PRIORS[min(matched, len(LOOKUP_PRIORS)) - 1]


@dataclass
class Rate:
    """How often a source is right: an estimate from a prior and counts that fade.

    Attributes:
        prior: the rate before anything is known.
        weight: number of trials that the prior counts as.
        right, trials: the faded counts.
    """

    prior: float
    weight: float = 3.0
    right: float = 0.0
    trials: float = 0.0

    def __call__(self) -> float:
        """Return the estimate, at most 0.99."""
        return min((self.right + self.weight * self.prior) / (self.trials + self.weight), 0.99)

    def fade(self, share: float) -> None:
        """Multiply the counts by `share`, so that the estimate returns to the prior and the source is tried again."""
        self.right, self.trials = self.right * share, self.trials * share

    def learn(self, accepted: int, offered: int) -> None:
        """Count a chain of `offered` tokens: the first `accepted`, which were right, and the first wrong one."""
        self.right += accepted
        self.trials += accepted + (accepted < offered)
