"""Token recycling (Luo et al. 2024, arXiv 2408.08696): which tokens follow which, and a tree of fixed shape from that.

Shapes: V vocabulary, K edges a token, n nodes. NumPy, because these arrays are small and a torch call costs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from selfdraft.core.growth import grow

NOTHING = -1  # an edge not known yet


class Adjacency:
    """(V, K) the tokens that may follow each token, the likeliest first."""

    def __init__(self, vocabulary: int, edges: int) -> None:
        self.edges: NDArray[np.int32] = np.full((vocabulary, edges), NOTHING, dtype=np.int32)

    def copy(self) -> Adjacency:
        """The same edges, to go on from."""
        twin = Adjacency(0, 0)
        twin.edges = self.edges.copy()
        return twin

    def seed(self, text: Sequence[int]) -> None:
        """Put what followed each token in a text to the front of its edges: of several, the last to follow."""
        for token, following in pairwise(text):
            row = self.edges[token]
            known = np.flatnonzero(row == following)
            end = int(known[0]) if len(known) else len(row) - 1
            row[1 : end + 1] = row[:end].copy()
            row[0] = following

    def update(self, tokens: NDArray[np.int64], following: NDArray[np.int64]) -> None:
        """Replace the edges of (n,) `tokens` by the (n, K) `following`; of a token named twice, the last counts."""
        self.edges[tokens] = following


@dataclass(frozen=True)
class Template:
    """The shape of a tree, level by level: of each node its parent's place in the level above, and which edge it is."""

    parents: tuple[NDArray[np.int64], ...]
    ranks: tuple[NDArray[np.int64], ...]

    @staticmethod
    def of(children: Sequence[int]) -> Template:
        """From the number of children of the root and of each node, breadth-first; nodes not named have none.

        Raises:
            ValueError: it names more nodes than it makes.
        """
        parents, ranks, named, width = [], [], 0, 1
        while width and named < len(children):
            counts = np.asarray(children[named : named + width])
            named += width
            parents.append(np.repeat(np.arange(len(counts)), counts))
            ranks.append(np.concatenate([np.arange(count) for count in counts]).astype(np.int64))
            width = len(parents[-1])
        if named < len(children) and any(children[named:]):
            raise ValueError("it gives children to nodes that it does not have")
        filled = [level for level in range(len(parents)) if len(parents[level])]
        return Template(tuple(parents[i] for i in filled), tuple(ranks[i] for i in filled))

    @staticmethod
    def likeliest(chances: Sequence[float], nodes: int, depth: int) -> Template:
        """The `nodes` nodes that stand most often, if a token's r-th edge is right with chance ``chances[r]``."""
        edges = list(enumerate(chances))
        growth = grow(lambda *_: edges, nodes=nodes, depth=depth)
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(growth.parents):
            children.setdefault(parent, []).append(node)
        level, shape = [-1], []
        while level:
            shape += [len(children.get(node, [])) for node in level]
            level = [child for node in level for child in children.get(node, [])]
        return Template.of(shape)

    def __len__(self) -> int:
        return sum(map(len, self.parents))

    def filled(self, adjacency: Adjacency, root: int, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tree below token `root`, down to `depth`: (n,) tokens and parents, without the edges not known.

        One gather a level, no loop over nodes.
        """
        tokens, parents = [], []
        level = np.asarray([root])  # tokens of the level above; of a node left out: NOTHING
        place = np.asarray([-1])  # and where they stand in the tree
        count = 0
        for above, rank in zip(self.parents[:depth], self.ranks[:depth], strict=True):
            filled = adjacency.edges[level[above], rank].astype(np.int64)
            filled[level[above] == NOTHING] = NOTHING
            kept = filled != NOTHING
            tokens.append(filled[kept])
            parents.append(place[above][kept])
            level, place = filled, count + np.cumsum(kept) - 1
            count += len(tokens[-1])
        empty = np.empty(0, dtype=np.int64)
        return np.concatenate([empty, *tokens]), np.concatenate([empty, *parents])
