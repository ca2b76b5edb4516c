"""Token trees: the one structure that every drafter proposes and every target forward verifies.

A tree holds several guesses of how the text goes on, which share their common beginnings. "is Paris", "is in" and "was"
make the tree with tokens [is, Paris, in, was] and parents [-1, 0, 0, -1].

Shapes: n nodes. The parent of node i is node ``parents[i] < i``, or the *root* if ``parents[i] == -1``. The root is the
last token of the text so far. It is not a node of the tree, because every forward contains it in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

ROOT = -1


@dataclass(frozen=True, eq=False)
class TokenTree:
    """A draft in the form that the target verifies.

    Attributes:
        tokens: (n,) int64 on the CPU, the token at every node.
        parents: (n,) int64 on the CPU, the parent node's index, ``ROOT`` for children of the last committed token.
        is_candidate: (n,) bool on the CPU. Candidates may be accepted; probes only have their logits computed.
    """

    tokens: Tensor
    parents: Tensor
    is_candidate: Tensor

    @staticmethod
    def empty() -> TokenTree:
        """Return the tree of a step without a draft (plain autoregressive decoding)."""
        return TokenTree.chain([])

    @staticmethod
    def chain(tokens: Sequence[int] | Tensor) -> TokenTree:
        """Return a tree of one branch, in which every token is the child of the one before it."""
        tokens = torch.as_tensor(tokens, dtype=torch.long)
        n = len(tokens)
        return TokenTree(tokens, torch.arange(-1, n - 1), torch.ones(n, dtype=torch.bool))

    @staticmethod
    def chains(tokens: Tensor) -> TokenTree:
        """Return a tree of k separate branches of w tokens, from (k, w) tokens."""
        return TokenTree.separate(tokens.tolist())

    @staticmethod
    def separate(branches: Sequence[Sequence[int]]) -> TokenTree:
        """Return a tree of several branches of any lengths that share no nodes, in their order."""
        tokens: list[int] = []
        parents: list[int] = []
        for branch in branches:
            parents += [len(tokens) + at - 1 if at else ROOT for at in range(len(branch))]
            tokens += branch
        of = torch.long
        return TokenTree(
            torch.tensor(tokens, dtype=of), torch.tensor(parents, dtype=of), torch.ones(len(tokens), dtype=torch.bool)
        )

    @staticmethod
    def merged(branches: Sequence[Sequence[int]]) -> TokenTree:
        """Return a tree of several branches that share their common beginnings; the first branch stays first."""
        tokens: list[int] = []
        parents: list[int] = []
        node_of: dict[tuple[int, int], int] = {}  # (parent, token) to node
        for branch in branches:
            node = ROOT
            for token in branch:
                place = node, token
                node = node_of.setdefault(place, len(tokens))
                if node == len(tokens):
                    tokens.append(token)
                    parents.append(place[0])
        of = torch.long
        return TokenTree(
            torch.tensor(tokens, dtype=of), torch.tensor(parents, dtype=of), torch.ones(len(tokens), dtype=torch.bool)
        )

    def beside(self, tokens: Tensor, parents: Tensor) -> TokenTree:
        """Return this tree with probes added under the same root; `parents` are numbered among the probes."""
        shifted = torch.where(parents < 0, ROOT, parents + len(self))
        flags = torch.cat([self.is_candidate, torch.zeros(len(tokens), dtype=torch.bool)])
        return TokenTree(torch.cat([self.tokens, tokens]), torch.cat([self.parents, shifted]), flags)

    def probed(self, count: int, token: int, under: Sequence[int] | None = None) -> TokenTree:
        """Return this tree with a chain of `count` probes, all holding `token`, under the root and under every node.

        The probes come after all other nodes, so a node's first child is a probe only if it has no other child.

        Args:
            count: probes in each chain.
            token: of every probe.
            under: the nodes (or ``ROOT``) that get probes; None for all.
        """
        n = len(self)
        heads = torch.arange(ROOT, n) if under is None else torch.tensor(sorted(under), dtype=torch.long)
        parents = torch.arange(n - 1, n - 1 + len(heads) * count).view(len(heads), count).clone()
        parents[:, :1] = heads[:, None]
        flags = torch.cat([self.is_candidate, torch.zeros(parents.numel(), dtype=torch.bool)])
        tokens = torch.cat([self.tokens, torch.full((parents.numel(),), token)])
        return TokenTree(tokens, torch.cat([self.parents, parents.flatten()]), flags)

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if not (len(self.parents) == len(self.is_candidate) == n):
            raise ValueError(f"a tree of {n} tokens has {len(self.parents)} parents, {len(self.is_candidate)} flags")
        if not all(ROOT <= parent < node for node, parent in enumerate(self.parent_list)):
            raise ValueError("a node's parent must come before it in the tree")

    def __len__(self) -> int:
        return len(self.parent_list)

    @cached_property
    def parent_list(self) -> list[int]:
        """`parents` as Python numbers. On trees of some dozen nodes, loops over them are faster than tensor calls."""
        return self.parents.tolist()

    @cached_property
    def is_chain(self) -> bool:
        """Whether every node is the child of the one before it, so that accepted nodes are a prefix of the tree."""
        return self.parent_list == list(range(ROOT, len(self) - 1))

    @cached_property
    def sees(self) -> Tensor:
        """(n, n) bool: ``sees[i, j]`` if node j is node i or an ancestor of it."""
        sees = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parent_list):
            if parent != ROOT:
                sees[node] |= sees[parent]
        return torch.from_numpy(sees)

    @cached_property
    def depths(self) -> Tensor:
        """(n,) int64: 1 for the root's children. A node's position is the root's position plus its depth."""
        depths: list[int] = []
        for parent in self.parent_list:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return torch.tensor(depths, dtype=torch.long)

    @cached_property
    def height(self) -> int:
        """The depth of the deepest node; 0 for an empty tree."""
        return max(self.depths.tolist(), default=0)

    @cached_property
    def sibling_ranks(self) -> Tensor:
        """(n,) int64: 0 for a parent's first child, 1 for its second, in the order of the nodes."""
        children: Counter[int] = Counter()
        ranks = []
        for parent in self.parent_list:
            ranks.append(children[parent])
            children[parent] += 1
        return torch.tensor(ranks, dtype=torch.long)

    def first_branch(self) -> Tensor:
        """Return (n,) bool: the chain of first children, for uses that accept only a chain."""
        first = self.sibling_ranks == 0
        return ~(self.sees & ~first).any(dim=1)

    def branch_through(self, nodes: Sequence[int]) -> list[int]:
        """Return the branch that begins with `nodes`, a path down from the root, and goes on with first children."""
        branch = list(nodes)
        while (last := branch[-1] if branch else ROOT) in self.parent_list:
            branch.append(self.parent_list.index(last))
        return branch

    def restricted_to(self, kept: Tensor) -> TokenTree:
        """Return the tree of the nodes in `kept`, (n,) bool, which must include the parent of every node in it."""
        renumbered = torch.cat([torch.cumsum(kept, 0) - 1, torch.tensor([ROOT])])  # the last entry serves parent -1
        return TokenTree(self.tokens[kept], renumbered[self.parents[kept]], self.is_candidate[kept])

    def up_to_depth(self, depth: int) -> TokenTree:
        """Return the tree without nodes deeper than `depth`, which can never be emitted and need not be computed."""
        if self.height <= depth:
            return self
        return self.restricted_to(self.depths <= depth)

    def offered_by_depth(self) -> list[bool]:
        """Return, for depth 1, 2, …, whether the tree has a candidate there."""
        deep = {depth for depth, may in zip(self.depths.tolist(), self.is_candidate.tolist(), strict=True) if may}
        return [depth in deep for depth in range(1, max(deep, default=0) + 1)]
