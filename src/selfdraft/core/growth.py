"""Grow a token tree best-first: add the most probable nodes, and keep as many of them as pay.

The *branch probability* of a node is the probability that it and all nodes above it are accepted. So the expected
number of accepted tokens is the sum of the branch probabilities of a tree's nodes. Best-first growth adds nodes in
descending order of branch probability, never a child before its parent. So its first n nodes are the best tree of n
nodes, for every n, and only the size is left to choose (cf. Sequoia, arXiv 2402.12374).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import torch

from selfdraft.core.costs import CostCurve
from selfdraft.core.tree import ROOT, TokenTree

Expand = Callable[[int, int, int], Iterable[tuple[int, float]]]
"""``expand(node, parent, token)``, called as a node enters the tree: what may follow it, each token with its chance if
the node is accepted. For the root ``(ROOT, ROOT, ROOT)``."""


@dataclass
class Growth:
    """A growing tree: the token, parent and branch probability of each node. The probabilities never rise."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)

    def branch(self, node: int) -> tuple[int, ...]:
        """Return the tokens from the root's child down to `node`; none for the root."""
        tokens: list[int] = []
        while node != ROOT:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tuple(reversed(tokens))

    def order(self, size: int) -> list[int]:
        """Return the first `size` nodes, each branch down to its end before the next, the most probable branch first.

        The branch that is most likely to be accepted then comes first in the block, so its keys and values are already
        in their final place in the cache. Those of other branches have to be moved, layer by layer, at the commit.
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
        """Return the place of each of the first `size` nodes, and of the root, in the order of `order`."""
        return {ROOT: ROOT, **{node: at for at, node in enumerate(self.order(size))}}

    def tree(self, size: int) -> TokenTree:
        """Return the tree of the first `size` nodes in the order of `order`, all candidates."""
        order, place = self.order(size), self.places(size)
        tokens = torch.tensor([self.tokens[node] for node in order], dtype=torch.long)
        parents = torch.tensor([place[self.parents[node]] for node in order], dtype=torch.long)
        return TokenTree(tokens, parents, torch.ones(size, dtype=torch.bool))


def grow(
    expand: Expand, *, nodes: int, depth: int, least: float = 0.0, seconds: Sequence[float] | None = None
) -> Growth:
    """Return a tree of up to `nodes` nodes, none deeper than `depth` or less probable than `least`.

    Args:
        seconds: what a forward of 1, 2, … tokens takes, up to nodes + 1. If given, growth ends where no further node
            can raise the expected tokens per second: `best_size` stays the same, and fewer nodes are expanded.
    """
    growth, worth = Growth(), None if seconds is None else _Worth(seconds)
    # Nodes that could be added, each as (-branch probability, number of the offer, parent, depth, token). Among equally
    # probable nodes the first offered wins, so a parent's children are tried in the order in which `expand` names them.
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
        if worth is not None and not worth.rises(-minus):
            break
        growth.tokens.append(token)
        growth.parents.append(parent)
        growth.probabilities.append(-minus)
        offer(len(growth.tokens) - 1, parent, token, at, -minus)
    return growth


def grow_to_pay(
    expand: Expand, *, nodes: int, depth: int, least: float, costs: CostCurve | None, whole: bool = False
) -> tuple[Growth, int]:
    """Return a tree as `grow` does, and how many of its first nodes to draft.

    Args:
        costs: of forwards, in seconds; the size is then that of `best_size`. None: tokens are free, so all are drafted.
        whole: whether the tree is also grown past the nodes that can pay.
    """
    seconds = None if costs is None or whole else costs.up_to(nodes + 1)
    growth = grow(expand, nodes=nodes, depth=depth, least=least, seconds=seconds)
    return growth, len(growth.tokens) if costs is None else best_size(growth.probabilities, costs)


class _Worth:
    """The expected tokens per second of a growing tree, and whether further nodes can still raise them."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds, self._size, self._expected = seconds, 0, 1.0
        self._best = 1.0 / seconds[0]

    def rises(self, probability: float) -> bool:
        """Add a node of this branch probability, which no later one exceeds; False if no larger tree can be better."""
        expected = self._expected
        for forward in self._seconds[self._size + 1 :]:
            expected += probability
            if expected > self._best * forward:
                break
        else:
            return False
        self._size += 1
        self._expected += probability
        self._best = max(self._best, self._expected / self._seconds[self._size])
        return True


def best_size(probabilities: Sequence[float], costs: CostCurve | Callable[[int], float]) -> int:
    """Return how many of the first nodes give the most expected tokens per second; 0 if drafting does not pay.

    A tree of n nodes is expected to emit the bonus token plus the sum of their branch probabilities, at the cost of a
    forward of n + 1 tokens.
    """
    best, size, expected = 1.0 / costs(1), 0, 1.0
    for n, probability in enumerate(probabilities, start=1):
        expected += probability
        rate = expected / costs(n + 1)
        if rate > best:
            best, size = rate, n
    return size


def paying_lengths(chains: Sequence[Sequence[float]], costs: CostCurve | Callable[[int], float]) -> list[int]:
    """Return how many first tokens of each chain to draft, all side by side, for the most expected tokens per second.

    Args:
        chains: for every token of every chain, the probability that it and all before it are right; falling.
        costs: seconds of a forward by its number of tokens.
    """
    tokens = [(probability, number) for number, chain in enumerate(chains) for probability in chain]
    tokens.sort(key=lambda token: -token[0])  # stable: a chain's tokens stay in order
    paying = Counter(number for _, number in tokens[: best_size([probability for probability, _ in tokens], costs)])
    return [paying[number] for number in range(len(chains))]


def best_probed(growth: Growth, costs: Callable[[int], float], count: int, worth: float) -> tuple[int, list[int]]:
    """Choose how many of the first nodes to draft, and under which nodes (or ``ROOT``) to put `count` probes each.

    Acceptance ends at one node (or the root). The probes under that node give the next step's draft, which is worth
    `worth` tokens; all other probes are wasted. So probes go to the nodes at which acceptance is most likely to end.
    Both numbers, of nodes and of nodes with probes, are chosen for the most expected tokens per second. At least one
    node gets probes, because without any probe nothing would ever be drafted again.

    Returns:
        The number of nodes, and the nodes with probes, the most likely end first.
    """
    best, found = 0.0, (0, [ROOT])
    chances, tokens = [1.0], 1.0  # chances[node + 1]: of acceptance ending at that node
    for size in range(len(growth.tokens) + 1):
        if size:
            chance = growth.probabilities[size - 1]
            chances.append(chance)
            chances[growth.parents[size - 1] + 1] -= chance
            tokens += chance
        ends = sorted(range(ROOT, size), key=lambda node: -chances[node + 1])
        expected = tokens
        for number, node in enumerate(ends, start=1):
            expected += worth * chances[node + 1]
            rate = expected / costs(1 + size + number * count)
            if rate > best:
                best, found = rate, (size, ends[:number])
    return found
