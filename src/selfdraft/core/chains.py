"""Learn how often guessed chains are right, and choose how many tokens of each chain to draft.

A *chain* is a draft without branches: token ids, each a guess of the token after the one before it.

Drafters sort their chains into *kinds*, and each kind has acceptance rates of its own. Prompt lookup, for example,
copies what followed the last n-gram earlier in the text, and the kind is the length of that n-gram: chains after a
match of three tokens are right more often than chains after a match of one.

In every step:

1. The drafter puts the chains that it found into `Chains.found`.
2. `Chains.paying` returns the first tokens of each chain: as many as are expected to save more time than they cost.
3. `Chains.learn` compares the chains with the tokens that the target wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import takewhile
from typing import Generic, TypeVar

from selfdraft.core.costs import CostCurve
from selfdraft.core.growth import paying_lengths
from selfdraft.core.rates import FADING, Rate, lookup_priors

K = TypeVar("K", bound=Hashable)

RANK_DECAY = 0.2  # the prior probability of a match's first token is multiplied by this for each better match
PRIOR_WEIGHT = 6.0  # number of observed tokens that a prior probability counts as


class Chances:
    """The learned probabilities that the tokens of chains of one kind are right.

    Attributes:
        first: rate at which the first token of a chain is right.
        later: rate at which a later token is right, given that all tokens before it are.
    """

    def __init__(self, first: float, later: float) -> None:
        """Begin with prior probabilities.

        Args:
            first: probability that the first token is right.
            later: probability that a later token is right, given that all tokens before it are.
        """
        self.first, self.later = Rate(first, PRIOR_WEIGHT), Rate(later, PRIOR_WEIGHT)

    def reached(self, length: int) -> list[float]:
        """Return, for each of the first `length` tokens, the probability that it and all tokens before it are right."""
        return [self.first() * self.later() ** depth for depth in range(length)]

    def learn(self, guesses: Sequence[int], emitted: Sequence[int]) -> None:
        """Compare a chain with the tokens that the target wrote in its place.

        Guesses after the first wrong one, and after the end of `emitted`, do not count: nothing is known about them.

        Args:
            guesses: token ids of the chain. It may have been found but not drafted.
            emitted: token ids that the step wrote.
        """
        known = list(zip(guesses, emitted, strict=False))
        if not known:
            return
        right = len(list(takewhile(lambda pair: pair[0] == pair[1], known)))
        self.first.learn(min(right, 1), 1)
        if right and len(known) > 1:
            self.later.learn(right - 1, len(known) - 1)

    def fade(self) -> None:
        """Reduce the weight of what was learned so far, so that new observations count more than old ones."""
        self.first.fade(FADING)
        self.later.fade(FADING)


def lookup_chances(matched: int, rank: int) -> Chances:
    """Return the prior probabilities of a chain that followed an n-gram earlier in the text.

    Args:
        matched: number of tokens in the n-gram.
        rank: number of matches that are better than this one. Their tokens are more likely to be right.
    """
    first, later = lookup_priors(matched)
    return Chances(first * RANK_DECAY**rank, later)


class Chains(Generic[K]):
    """The chains that a drafter found for one request in the present step, and how often each kind was right before.

    Attributes:
        found: token ids of the chains by kind, at their full length even if only a part of each is drafted.
        chances: probabilities by kind, for every kind that has occurred.
    """

    def __init__(self, expected: Callable[[K], Chances]) -> None:
        """Begin without chains.

        Args:
            expected: returns the prior probabilities of a kind. It is called when the kind occurs for the first time.
        """
        self.expected = expected
        self.found: dict[K, list[int]] = {}
        self.chances: dict[K, Chances] = {}

    def paying(self, costs: CostCurve) -> list[list[int]]:
        """Return the beginning of each chain found, at the length that pays when all are verified in one forward.

        Args:
            costs: seconds of a full forward by its number of tokens.
        """
        for kind in self.found:
            if kind not in self.chances:
                self.chances[kind] = self.expected(kind)
        reached = [self.chances[kind].reached(len(tokens)) for kind, tokens in self.found.items()]
        lengths = paying_lengths(reached, costs)
        return [tokens[:length] for tokens, length in zip(self.found.values(), lengths, strict=True)]

    def learn(self, emitted: Sequence[int]) -> None:
        """Compare all chains found, drafted or not, with the token ids that the step wrote."""
        for kind, chances in self.chances.items():
            chances.fade()
            chances.learn(self.found.get(kind, ()), emitted)
