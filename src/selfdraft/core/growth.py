"""Growing a token tree best-first: the most probable nodes, and as many of them as pay.

A node stands if all nodes above it do, so the tokens that a tree is expected to gain are the sum of its nodes' path
probabilities. Best-first growth adds nodes in the order of these, never a child before its parent: so each of its
prefixes is the best tree of that size, and what remains is to choose the size (cf. Sequoia, arXiv 2402.12374).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import torch

from selfdraft.core.costs import CostCurve
from selfdraft.core.tree import ROOT, TokenTree

Expand = Callable[[int, int, int], Iterable[tuple[int, float]]]
"""``expand(node, parent, token)``, called as a node enters the tree: what may follow it, each token with its chance if
the node stands. For the root ``(ROOT, ROOT, ROOT)``."""


@dataclass
class Growth:
    """A tree as it grows: by node its token, parent and path probability, which never rises."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)

    def branch(self, node: int) -> tuple[int, ...]:
        """The tokens from the root's child down to `node`; none for the root."""
        tokens: list[int] = []
        while node != ROOT:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tuple(reversed(tokens))

    def order(self, size: int) -> list[int]:
        """The first `size` nodes, every branch down to its end before the next, the most probable one first.

        The path that is likeliest to stand is then the beginning of the block, and what was computed of it lies where
        it is to stay: other paths have to be moved, layer by layer, when they are committed.
        """
        below: list[list[int]] = [[] for _ in range(size + 1)]
        for node in reversed(range(size)):
            below[self.parents[node] + 1].append(node)
        order, waiting = [], below[0]
        while waiting:
            order.append(waiting.pop())
            waiting += below[order[-1] + 1]
        return order

    def places(self, size: int) -> dict[int, int]:
        """Where each of the first `size` nodes, and the root, stands in that order."""
        return {ROOT: ROOT, **{node: at for at, node in enumerate(self.order(size))}}

    def tree(self, size: int) -> TokenTree:
        """The first `size` nodes in that order, all candidates."""
        order, place = self.order(size), self.places(size)
        tokens = torch.tensor([self.tokens[node] for node in order], dtype=torch.long)
        parents = torch.tensor([place[self.parents[node]] for node in order], dtype=torch.long)
        return TokenTree(tokens, parents, torch.ones(size, dtype=torch.bool))


def grow(expand: Expand, *, nodes: int, depth: int, least: float = 0.0) -> Growth:
    """Up to `nodes` nodes, none deeper than `depth` or less probable than `least`."""
    growth = Growth()
    # Of every node that could be added: (-probability, when it was offered, parent, depth, token). Of equally probable
    # ones the first offered wins, so a parent's children are tried in the order in which `expand` names them.
    waiting: list[tuple[float, int, int, int, int]] = []
    offers = 0

    def offer(node: int, parent: int, token: int, at: int, probability: float) -> None:
        nonlocal offers
        for following, chance in expand(node, parent, token):
            path = probability * chance
            if path > 0.0 and path >= least and at < depth:
                offers += 1
                heappush(waiting, (-path, offers, node, at + 1, following))

    offer(ROOT, ROOT, ROOT, 0, 1.0)
    while waiting and len(growth.tokens) < nodes:
        minus, _, parent, at, token = heappop(waiting)
        growth.tokens.append(token)
        growth.parents.append(parent)
        growth.probabilities.append(-minus)
        offer(len(growth.tokens) - 1, parent, token, at, -minus)
    return growth


def best_size(probabilities: Sequence[float], costs: CostCurve | Callable[[int], float]) -> int:
    """How many of the first nodes make the tree with the most expected tokens per second; 0 where drafting loses.

    Expected of n nodes: the bonus and the sum of their path probabilities, at the cost of n + 1 tokens.
    """
    best, size, expected = 1.0 / costs(1), 0, 1.0
    for n, probability in enumerate(probabilities, start=1):
        expected += probability
        rate = expected / costs(n + 1)
        if rate > best:
            best, size = rate, n
    return size


def best_probed(growth: Growth, costs: Callable[[int], float], count: int, worth: float) -> tuple[int, list[int]]:
    """How many of the first nodes to draft, and under which of them, or ``ROOT``, `count` probes are to hang.

    The probes under the node where the accepted tokens end are the next step's draft, `worth` so many tokens; those
    under all others are for nothing. So the likeliest ends come first, and how many of each is what makes the most
    expected tokens per second. One end has probes always: without any, nothing would be drafted ever again.

    Returns:
        The size, and the nodes, the likeliest end first.
    """
    best, found = 0.0, (0, [ROOT])
    chances, tokens = [1.0], 1.0  # by node + 1, of ending there
    for size in range(len(growth.tokens) + 1):
        if size:
            stands = growth.probabilities[size - 1]
            chances.append(stands)
            chances[growth.parents[size - 1] + 1] -= stands
            tokens += stands
        ends = sorted(range(ROOT, size), key=lambda node: -chances[node + 1])
        expected = tokens
        for number, node in enumerate(ends, start=1):
            expected += worth * chances[node + 1]
            rate = expected / costs(1 + size + number * count)
            if rate > best:
                best, found = rate, (size, ends[:number])
    return found
