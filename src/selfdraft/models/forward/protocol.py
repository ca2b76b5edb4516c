"""The interface between decoding and models: what a target can do, whichever engine runs it.

The decoding loop and the drafters call only these methods. In each step they run drafts through a path
(`draft_forward`), verify them with the full model (`forward`), and keep what was accepted (`commit`). `target.Target`
is the usual implementation.

Shapes: B rows of one forward, n nodes of a tree, V vocabulary, C hidden size, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.path import Graph, Path, Reuse


class TargetProtocol(Protocol):
    """A model with a cache of several rows, one per request.

    Attributes:
        full: the path of all layers.
        cache: rows of committed tokens: `rows`, `lengths`, `clear`, `reserve` and `move` (see `KVCache`).
        vocab_size, max_positions, pad_id: number of token ids, of positions, and the padding id.
        chains_only: whether forwards take chains only, no trees with branches.
        forwards: number of full forwards after prefill; tests compare the counts in records with it.
        compiled: what runs several layers in one call, by the identities of these layers; empty: layers run one by one.
    """

    full: Path
    cache: Any
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    max_positions: int
    pad_id: int
    chains_only: bool
    forwards: int
    compiled: dict[tuple[int, ...], Graph]

    def allocate(self, rows: int, slots: int) -> None:
        """Empty the cache, with room for `rows` requests of at least `slots` tokens each."""

    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        """Append `tokens` to the committed tokens of a cache row, without computing logits."""

    def copy_prefix(self, source: int, row: int, length: int) -> int:
        """Make a cache row begin with the first `length` committed tokens of a row: another one, or itself.

        Returns:
            How many committed tokens the row has then: `length`, or 0 if they cannot be copied and need a prefill.
        """
        ...

    def refresh(self, row: int, tokens: Sequence[int]) -> None:
        """Recompute a row's keys when its text grows past a limit of its rotary positions, in families that do so.

        Args:
            tokens: the row's committed tokens and the next root.
        """

    def longest_draft(self, row: int) -> int:
        """Return the greatest depth that a row's next forward may verify."""
        ...

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
        """Run one full forward of every row's root and tree.

        Args:
            rows: B cache rows. roots: their last committed tokens, not yet in the cache. trees: their drafts.
            reuse: per row, what drafting has computed already, so that only the rest is computed. Ignored with `keep`
                or `through`, and unless all rows have it for the same number of layers.
            keep: per row, a list that gets the (L + 1, n + 1, C) hidden states before the first layer and after each.
            through: a path that runs all layers in its own way and gives the root and the candidates the full path's
                logits; None for the full path.

        Returns:
            Per row (n + 1, V) logits: after the root, then after each node.
        """
        ...

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
        """Run a draft's tokens through `path`. Their keys go to scratch slots, so nothing has to be undone.

        Args:
            offset: number of tokens of the same draft that were run before, because a chain is drafted token by token.
            tokens: per row, the token to run at that offset. trees: per row, the nodes below it.
            keep: per row, a list that gets the (n + 1, C) hidden states after the path's leading layers, for `Reuse`.

        Returns:
            Per row (n + 1, V) logits.
        """
        ...

    def commit(self, row: int, nodes: Sequence[int]) -> None:
        """Keep the root and the accepted nodes of the last full forward."""

    def replay(self, path: Path, row: int, position: int, tokens: Sequence[int], block: int | None = None) -> Tensor:
        """Return (n, V) logits of `path` after each of n committed tokens from `position` on, as if drafted there.

        They see the full model's keys before `position`, and their own, which are written to scratch slots.

        Args:
            block: cut the tokens into blocks of this size, each of which sees the full model's keys before it: one
                forward then imitates many drafts of up to that length.
        """
        ...
