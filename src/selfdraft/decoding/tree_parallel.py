"""Tree parallelism: several processes verify one tree, each computing a share of its branches.

Lookahead parallelism (Fu et al. 2024, arXiv 2402.02057, section 3.4) for any drafter: a process forwards the paths to
its share of the leaves, the logits of all nodes are exchanged, and all processes go on with the same ones. Keys and
values are not exchanged. A process that did not compute an accepted node *owes* its token to its own cache, and
forwards it with its next share, as a chain between what it holds and the root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from selfdraft.core.costs import CostCurve
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache import KVCache
from selfdraft.models.target import Path, Target


@dataclass(frozen=True)
class Share:
    """How a tree of n nodes is dealt out.

    Attributes:
        owner: (n,) the rank whose logits of a node are everybody's.
        held: (ranks, n) bool: the nodes that a rank computes, those on the way to its own included.
    """

    owner: Tensor
    held: Tensor


def share_out(tree: TokenTree, ranks: int) -> Share:
    """Deal the leaves to the ranks in the order of the nodes, with about as many nodes to each.

    Of lookahead's tree that makes neighbouring guesses, and neighbouring columns of the window.
    """
    n = len(tree)
    if not n:
        return Share(torch.zeros(0, dtype=torch.long), torch.zeros(ranks, 0, dtype=torch.bool))
    is_leaf = torch.ones(n, dtype=torch.bool)
    is_leaf[tree.parents[tree.parents >= 0]] = False
    ways = tree.sees[is_leaf]  # (leaves, n): what lies on the way to each
    new = ways & (ways.cumsum(0) == 1)  # a node belongs to the first leaf that it leads to
    weight = new.sum(1)
    middle = 2 * weight.cumsum(0) - weight  # twice over, to stay with integers
    rank_of_leaf = middle * ranks // (2 * n)
    held = torch.stack([ways[rank_of_leaf == rank].any(0) for rank in range(ranks)])
    return Share(rank_of_leaf[new.long().argmax(0)], held)


class TreeParallelTarget:
    """A target that computes its share of every tree, behind the interface of `Target`.

    All ranks of the process group must decode the same requests in the same order. What a drafter computes by itself
    (`draft_forward`) is computed by all, and rank 0's result is everybody's: rounding must not make drafts differ.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.owed: dict[int, list[int]] = {}  # per cache row: committed tokens whose keys are missing here
        self.cache = OwingCache(self)
        self._last: dict[int, tuple[TokenTree, Tensor, int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    @cached_property
    def costs(self) -> CostCurve:
        """Rank 0's: what is decided by cost must be decided alike."""
        return _of_rank_0(self.target.costs)

    def costs_of(self, path: Path) -> CostCurve:
        """Rank 0's."""
        return _of_rank_0(self.target.costs_of(path))

    def allocate(self, rows: int, slots: int) -> None:
        """See `Target.allocate`."""
        self.owed.clear()
        self.target.allocate(rows, slots)

    def refresh(self, row: int, tokens: Sequence[int]) -> None:
        """See `Target.refresh`: where keys are computed anew, none are owed."""
        prefilled_at = self.target.cache.prefilled_at[row]
        self.target.refresh(row, tokens)
        if self.target.cache.prefilled_at[row] != prefilled_at:
            self.owed.pop(row, None)

    def longest_draft(self, row: int) -> int:
        """See `Target.longest_draft`: what is owed is forwarded with a draft, before it."""
        return max(self.target.longest_draft(row) - len(self.owed.get(row, [])), 0)

    @torch.inference_mode()
    def forward(
        self,
        rows: Sequence[int],
        roots: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        reuse: object = None,
        keep: None = None,
        pseudo: None = None,
    ) -> list[Tensor]:
        """This rank's share of one full forward; the logits of all nodes, the same on every rank.

        Args:
            reuse: not made use of: it stands for a whole tree. keep, pseudo: see `Drafter.tree_parallel`.
        """
        assert keep is None and pseudo is None, "no rank has the states of all nodes"
        shares = [share_out(tree, self.ranks) for tree in trees]
        firsts, parts = [], []
        for row, root, tree, share in zip(rows, roots, trees, shares, strict=True):
            held, owed = share.held[self.rank], self.owed.get(row, [])
            first, *between = [*owed, root]
            firsts.append(first)
            parts.append(behind(between, tree.restricted_to(held)))
            self._last[row] = tree, held, len(owed)
        computed = self.target.forward(rows, firsts, parts)
        whole = computed[0].new_zeros(sum(1 + len(tree) for tree in trees), computed[0].shape[-1])
        for row, share, logits, out in zip(rows, shares, computed, self._split(whole, trees), strict=True):
            logits = logits[len(self.owed.get(row, [])) :]
            held, mine = share.held[self.rank], share.owner == self.rank
            if self.rank == 0:
                out[0] = logits[0]
            out[1:][mine] = logits[1:][mine[held]]
        dist.all_reduce(whole)  # everybody else's entries are zero
        return self._split(whole, trees)

    def commit(self, row: int, path: Sequence[int]) -> None:
        """Keep what of the accepted path this rank computed; the rest is owed."""
        tree, held, owed = self._last[row]
        local = (held.cumsum(0) - 1).tolist()
        mine = [node for node in path if held[node]]  # with a node its ancestors are held: a prefix of the path
        self.target.commit(row, [*range(owed), *(owed + local[node] for node in mine)])
        self.owed[row] = tree.tokens[list(path[len(mine) :])].tolist()

    @torch.inference_mode()
    def draft_forward(
        self,
        path: Path,
        rows: Sequence[int],
        offset: int,
        tokens: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        keep: Sequence[list[Tensor]] | None = None,
    ) -> list[Tensor]:
        """Computed everywhere, behind all committed tokens; rank 0's logits."""
        for row in rows:
            if owed := self.owed.pop(row, []):
                self.target.prefill(row, owed)
        whole = torch.cat(self.target.draft_forward(path, rows, offset, tokens, trees, keep=keep))
        dist.broadcast(whole, src=0)
        return self._split(whole, trees)

    @staticmethod
    def _split(whole: Tensor, trees: Sequence[TokenTree]) -> list[Tensor]:
        return list(whole.split([1 + len(tree) for tree in trees]))


class OwingCache:
    """The target's cache, whose rows take what they owe with them."""

    def __init__(self, target: TreeParallelTarget) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    @property
    def _cache(self) -> KVCache:
        return self._target.target.cache

    def clear(self, row: int) -> None:
        """See `KVCache.clear`."""
        self._target.owed.pop(row, None)
        self._cache.clear(row)

    def move(self, source: int, destination: int) -> None:
        """See `KVCache.move`."""
        self._target.owed[destination] = self._target.owed.pop(source, [])
        self._cache.move(source, destination)


def _of_rank_0(value: CostCurve) -> CostCurve:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def behind(chain: Sequence[int], tree: TokenTree) -> TokenTree:
    """The tree under the end of a chain: m more nodes, which stand first."""
    m = len(chain)
    if not m:
        return tree
    return TokenTree(
        torch.cat([torch.tensor(chain), tree.tokens]),
        torch.cat([torch.arange(-1, m - 1), torch.where(tree.parents < 0, m - 1, tree.parents + m)]),
        torch.cat([torch.ones(m, dtype=torch.bool), tree.is_candidate]),
    )
