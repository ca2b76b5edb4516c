"""Random token trees, and a slow, obvious implementation to compare core with."""

from __future__ import annotations

import numpy as np
import torch

from selfdraft.core.tree import ROOT, TokenTree


def random_tree(rng: np.random.Generator, nodes: int, vocab: int = 96, probes: float = 0.2) -> TokenTree:
    """A tree of `nodes` nodes. With a small `vocab`, siblings often hold the same token."""
    # Parents are drawn from the latest few nodes, or trees of any size would be only a handful of levels deep.
    parents = [int(rng.integers(max(ROOT, i - 6), i)) for i in range(nodes)]
    return TokenTree(
        tokens=torch.as_tensor(rng.integers(vocab, size=nodes)),
        parents=torch.tensor(parents, dtype=torch.long),
        is_candidate=torch.as_tensor(rng.random(nodes) >= probes),
    )


def ancestry(tree: TokenTree, node: int) -> list[int]:
    """The nodes from the root's child down to `node`, `node` included."""
    path = []
    while node != ROOT:
        path.append(node)
        node = tree.parent_list[node]
    return path[::-1]


def branch(tree: TokenTree, node: int) -> list[int]:
    """The tokens from the root's child down to `node`."""
    return tree.tokens[ancestry(tree, node)].tolist()
