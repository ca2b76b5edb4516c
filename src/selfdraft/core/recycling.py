"""Token recycling (Luo et al. 2024, arXiv 2408.08696): remember what may follow each token, and draft trees from that.

The adjacency matrix has a row for each token: the K tokens that the model last predicted after it (its *edges*). A
template says how large the tree is and which edges fill it.

Shapes: V vocabulary, K edges per token, n nodes. NumPy, because these arrays are small and a torch call costs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from selfdraft.core.growth import grow

NOTHING = -1  # an edge that is not known yet


class Adjacency:
    """(V, K) tokens that may follow each token, the most likely first."""

    def __init__(self, vocabulary: int, edges: int) -> None:
        self.edges: NDArray[np.int32] = np.full((vocabulary, edges), NOTHING, dtype=np.int32)

    def copy(self) -> Adjacency:
        """Return a copy that can be changed by itself."""
        other = Adjacency(0, 0)
        other.edges = self.edges.copy()
        return other

    def seed(self, text: Sequence[int]) -> None:
        """Move the tokens that followed each token of a text to the front of its edges, the last one first."""
        for token, following in pairwise(text):
            row = self.edges[token]
            known = np.flatnonzero(row == following)
            end = int(known[0]) if len(known) else len(row) - 1
            row[1 : end + 1] = row[:end].copy()
            row[0] = following

    def update(self, tokens: NDArray[np.int64], following: NDArray[np.int64]) -> None:
        """Replace the edges of (n,) `tokens` by (n, K) `following`; for a token given twice, the last row counts."""
        self.edges[tokens] = following


@dataclass(frozen=True)
class Template:
    """The shape of a tree, level by level: each node's parent (its index in the level above), and its edge's rank."""

    parents: tuple[NDArray[np.int64], ...]
    ranks: tuple[NDArray[np.int64], ...]

    @staticmethod
    def of(children: Sequence[int]) -> Template:
        """Make a template from the numbers of children of the root and of each node, breadth-first (0 if missing).

        Raises:
            ValueError: a node that does not exist is given children.
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
        """Return the `nodes` nodes accepted most often, if a token's r-th edge is right with chance ``chances[r]``."""
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
        """Return the tree below token `root`, down to `depth`, without unknown edges: (n,) tokens and (n,) parents.

        It takes one gather per level, and no loop over nodes.
        """
        tokens, parents = [], []
        level = np.asarray([root])  # tokens of the level above; NOTHING for nodes that were left out
        place = np.asarray([-1])  # and their indices in the tree
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
