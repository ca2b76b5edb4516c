"""Estimate how often a source is right, from counts that fade with time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

# Prior probability that a looked-up token is right, for matched n-grams of 1, 2 and 3 or more tokens.
LOOKUP_PRIORS = (0.4, 0.6, 0.75)
FADING = 0.98  # weight of a trial one step later
RIVAL = 0.2  # each earlier match multiplies the prior probability of a match's first token by this
CHAIN_WEIGHT = 6.0  # number of trials that a prior of `Chances` counts like


def lookup_prior(matched: int) -> float:
    """Return the entry of `LOOKUP_PRIORS` for a match of `matched` tokens."""
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


class Chances:
    """How often tokens of one kind of guessed chain are right: the first one, and each one after a right one."""

    def __init__(self, first: float, later: float) -> None:
        """Begin with prior probabilities of the first token and of the later ones."""
        self.first, self.later = Rate(first, CHAIN_WEIGHT), Rate(later, CHAIN_WEIGHT)

    def reached(self, length: int) -> list[float]:
        """Return, for each of `length` tokens, the chance that it and all before it are right."""
        return [self.first() * self.later() ** depth for depth in range(length)]

    def learn(self, guesses: Sequence[int], emitted: Sequence[int]) -> None:
        """Compare a chain, drafted or not, with the tokens that were emitted there; later guesses stay unknown."""
        known = list(zip(guesses, emitted, strict=False))
        if not known:
            return
        right = len(list(takewhile(lambda pair: pair[0] == pair[1], known)))
        self.first.learn(min(right, 1), 1)
        if right and len(known) > 1:
            self.later.learn(right - 1, len(known) - 1)

    def fade(self) -> None:
        """Forget a little, so that estimates follow the text."""
        self.first.fade(FADING)
        self.later.fade(FADING)


def lookup_chances(matched: int, rank: int) -> Chances:
    """Return the expectation after an n-gram match of `matched` tokens, the next best after `rank` others."""
    prior = lookup_prior(matched)
    return Chances(prior * RIVAL**rank, prior)
