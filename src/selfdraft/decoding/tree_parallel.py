"""Tree parallelism: several processes verify one tree, each computing a share of its branches.

Lookahead parallelism (Fu et al. 2024, arXiv 2402.02057, section 3.4) for any drafter:

1. A process forwards the branches down to its share of the leaves.
2. The logits of all nodes are exchanged, and all processes go on with the same ones. Keys and values are not exchanged.
3. A process that did not compute an accepted node lacks its keys in its own cache. It *owes* that token: it forwards
   the owed tokens with its next share, as a chain between its committed tokens and the root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from selfdraft.core.costs import CostCurve, Costs, Shaped
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.cache import KVCache
from selfdraft.models.forward.path import Path, Reuse
from selfdraft.models.forward.target import Target


@dataclass(frozen=True)
class Share:
    """How a tree of n nodes is divided among the ranks.

    Attributes:
        owner: (n,) the rank whose logits of a node all ranks use.
        held: (ranks, n) bool, the nodes that a rank computes: its own ones and their ancestors.
    """

    owner: Tensor
    held: Tensor


def share_out(tree: TokenTree, ranks: int) -> Share:
    """Divide the leaves among the ranks in the order of the nodes, so that each rank has about as many nodes.

    In lookahead's tree, a rank thus gets neighbouring guesses or neighbouring columns of the window.
    """
    n = len(tree)
    if not n:
        return Share(torch.zeros(0, dtype=torch.long), torch.zeros(ranks, 0, dtype=torch.bool))
    is_leaf = torch.ones(n, dtype=torch.bool)
    is_leaf[tree.parents[tree.parents >= 0]] = False
    ways = tree.sees[is_leaf]  # (leaves, n): the nodes from the root's child down to each leaf
    new = ways & (ways.cumsum(0) == 1)  # (leaves, n): each node only for the first leaf below it
    weight = new.sum(1)
    middle = 2 * weight.cumsum(0) - weight  # doubled, to stay with integers
    rank_of_leaf = middle * ranks // (2 * n)
    held = torch.stack([ways[rank_of_leaf == rank].any(0) for rank in range(ranks)])
    return Share(rank_of_leaf[new.long().argmax(0)], held)


class TreeParallelTarget:
    """A target that computes its rank's share of every tree, with the interface of `Target`.

    All ranks of the process group must decode the same requests in the same order. Every rank computes a drafter's own
    forwards (`draft_forward`), but all use rank 0's result, because rounding must not make drafts differ.
    """

    full: Path
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    max_positions: int
    pad_id: int
    chains_only: bool
    forwards: int

    def __init__(self, target: Target) -> None:
        self.target = target
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.owed: dict[int, list[int]] = {}  # per cache row: committed tokens whose keys are missing here
        self.cache = OwingCache(self)
        self._last: dict[int, tuple[TokenTree, Tensor, int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def allocate(self, rows: int, slots: int) -> None:
        """See `Target.allocate`."""
        self.owed.clear()
        self.target.allocate(rows, slots)

    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        """See `Target.prefill`."""
        self.target.prefill(row, tokens)

    def copy_prefix(self, source: int, row: int, length: int) -> int:
        """Copy nothing: this process may lack the keys of the latest tokens, which the row still owes."""
        self.cache.clear(row)
        return 0

    def replay(self, path: Path, row: int, position: int, tokens: Sequence[int], block: int | None = None) -> Tensor:
        """See `Target.replay`."""
        return self.target.replay(path, row, position, tokens, block)

    def refresh(self, row: int, tokens: Sequence[int]) -> None:
        """See `Target.refresh`; a row whose keys are computed anew owes none."""
        prefilled_at = self.target.cache.prefilled_at[row]
        self.target.refresh(row, tokens)
        if self.target.cache.prefilled_at[row] != prefilled_at:
            self.owed.pop(row, None)

    def longest_draft(self, row: int) -> int:
        """See `Target.longest_draft`; shorter by the owed tokens, which are forwarded before a draft."""
        return max(self.target.longest_draft(row) - len(self.owed.get(row, [])), 0)

    @torch.inference_mode()
    def forward(
        self,
        rows: Sequence[int],
        roots: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        reuse: Sequence[Reuse | None] | None = None,
        keep: Sequence[list[Tensor]] | None = None,
        through: Path | None = None,
    ) -> list[Tensor]:
        """Compute this rank's share of one full forward; return the logits of all nodes, the same on every rank.

        Args:
            reuse: ignored, because it belongs to a whole tree.
            keep, through: must be None; see `Drafter.tree_parallel`.
        """
        assert keep is None and through is None, "no rank has the states of all nodes"
        shares = [share_out(tree, self.ranks) for tree in trees]
        firsts, parts = [], []
        for row, root, tree, share in zip(rows, roots, trees, shares, strict=True):
            held, owed = share.held[self.rank], self.owed.get(row, [])
            first, *between = [*owed, root]
            firsts.append(first)
            parts.append(after_chain(between, tree.restricted_to(held)))
            self._last[row] = tree, held, len(owed)
        computed = self.target.forward(rows, firsts, parts)
        whole = computed[0].new_zeros(sum(1 + len(tree) for tree in trees), computed[0].shape[-1])
        for row, share, logits, out in zip(rows, shares, computed, self._split(whole, trees), strict=True):
            logits = logits[len(self.owed.get(row, [])) :]
            held, mine = share.held[self.rank], share.owner == self.rank
            if self.rank == 0:
                out[0] = logits[0]
            out[1:][mine] = logits[1:][mine[held]]
        dist.all_reduce(whole)  # an entry is zero on all ranks but its owner's
        return self._split(whole, trees)

    def commit(self, row: int, nodes: Sequence[int]) -> None:
        """Commit the accepted nodes that this rank computed; it owes the rest."""
        tree, held, owed = self._last[row]
        local = (held.cumsum(0) - 1).tolist()
        mine = [node for node in nodes if held[node]]  # a node's ancestors are held too, so this is a prefix of `nodes`
        self.target.commit(row, [*range(owed), *(owed + local[node] for node in mine)])
        self.owed[row] = tree.tokens[list(nodes[len(mine) :])].tolist()

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
        """Forward the owed tokens, then draft on every rank; return rank 0's logits."""
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
    """The target's cache; a row's owed tokens are cleared and moved with it."""

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


def shared_costs(costs: Costs) -> Costs:
    """Return rank 0's `costs` on every rank, because all ranks must make the same decisions."""

    def measure(path: Shaped | None) -> CostCurve:
        box = [costs.full() if path is None else costs.of(path)]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    return Costs(measure, costs.alike)


def after_chain(chain: Sequence[int], tree: TokenTree) -> TokenTree:
    """Return `tree` below the end of `chain`, whose m nodes come first."""
    m = len(chain)
    if not m:
        return tree
    return TokenTree(
        torch.cat([torch.tensor(chain), tree.tokens]),
        torch.cat([torch.arange(-1, m - 1), torch.where(tree.parents < 0, m - 1, tree.parents + m)]),
        torch.cat([torch.ones(m, dtype=torch.bool), tree.is_candidate]),
    )
