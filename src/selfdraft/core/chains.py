"""Learn how often guessed chains were right, and choose how many tokens of each pay.

Chains are counted by *kind*, so that good and bad guesses are told apart. For prompt lookup the kind is the length of
the matched n-gram: a match of three tokens is right more often than a match of one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import takewhile
from typing import Generic, TypeVar

from selfdraft.core.costs import CostCurve
from selfdraft.core.growth import paying_lengths
from selfdraft.core.rates import FADING, Rate, lookup_priors

K = TypeVar("K", bound=Hashable)

RIVAL = 0.2  # each earlier match multiplies the prior probability of a match's first token by this
WEIGHT = 6.0  # number of trials that a prior counts as


class Chances:
    """How often the tokens of chains of one kind are right: the first one, and each one after a right one."""

    def __init__(self, first: float, later: float) -> None:
        """Begin with prior probabilities of the first token and of the later ones."""
        self.first, self.later = Rate(first, WEIGHT), Rate(later, WEIGHT)

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
    """Return prior chances of the tokens that followed an n-gram.

    Args:
        matched: number of tokens in the n-gram.
        rank: number of better matches, whose tokens are more likely right.
    """
    first, later = lookup_priors(matched)
    return Chances(first * RIVAL**rank, later)


class Chains(Generic[K]):
    """The chains that a request's drafter found in the present step, and what it learned about their kinds.

    Attributes:
        found: the chains by their kind, whole even if only a part of each is drafted.
        chances: by kind, how often its tokens are right.
    """

    def __init__(self, expected: Callable[[K], Chances]) -> None:
        """Take the function that returns the prior chances of a kind, called when the kind occurs first."""
        self.expected = expected
        self.found: dict[K, list[int]] = {}
        self.chances: dict[K, Chances] = {}

    def paying(self, costs: CostCurve) -> list[list[int]]:
        """Return the first tokens of each chain found: as many as pay when all chains are verified side by side."""
        for kind in self.found:
            if kind not in self.chances:
                self.chances[kind] = self.expected(kind)
        reached = [self.chances[kind].reached(len(tokens)) for kind, tokens in self.found.items()]
        lengths = paying_lengths(reached, costs)
        return [tokens[:length] for tokens, length in zip(self.found.values(), lengths, strict=True)]

    def learn(self, emitted: Sequence[int]) -> None:
        """Compare the chains found, drafted or not, with the tokens that the step emitted."""
        for kind, chances in self.chances.items():
            chances.fade()
            chances.learn(self.found.get(kind, ()), emitted)
