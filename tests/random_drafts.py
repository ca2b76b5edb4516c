"""Drafters of random trees for tests of sampling: with their distributions q, with siblings drawn in three ways."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch

from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig

BRANCHES = (3, 2)  # children of the root, and of each of them


@dataclass
class RandomTreeConfig(DrafterConfig):
    """`how` siblings are drawn: `with` replacement, `without`, or `certain`: not random."""

    name: str = "random_tree"
    how: str = "with"


@cache
def distributions(vocabulary: int) -> np.ndarray:
    """What follows each token is drawn from, by the token."""
    table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(5))
    return table.mul(0.7).softmax(-1).numpy()


class RandomTree(Drafter):
    """Draws each child from a distribution that depends on its parent's token and is not the target's."""

    Config: ClassVar = RandomTreeConfig
    config: RandomTreeConfig

    def propose(self, context: Context) -> Draft:
        """A tree of `BRANCHES`; of one level if only one token may still be emitted after the root."""
        tokens, parents, q = [], [], []
        level = [(ROOT, context.tokens[-1])]
        for branches in BRANCHES[: context.room]:
            below = []
            for parent, parent_token in level:
                left = distributions(self.target.vocab_size)[parent_token].copy()
                for _ in range(branches):
                    row = left / left.sum()
                    token = int(np.searchsorted(row.cumsum(dtype=np.double), context.rng.random(), side="right"))
                    token = min(token, len(row) - 1)
                    below.append((len(tokens), token))
                    tokens.append(token)
                    parents.append(parent)
                    q.append(row)
                    if self.config.how != "with":
                        left[token] = 0
            level = below
        tree = TokenTree(
            torch.tensor(tokens, dtype=torch.long),
            torch.tensor(parents, dtype=torch.long),
            torch.ones(len(tokens), dtype=torch.bool),
        )
        if self.config.how == "certain" or not tokens:
            return Draft(tree, "tree")
        return Draft(tree, "tree", torch.from_numpy(np.stack(q)))
