"""The input of one forward: its tokens, where their keys go in the cache, and which of them see each other.

A block is made from the token trees of several requests, padded to one width. The layers only see the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.cache import KVCache


@dataclass(frozen=True)
class Block:
    """B rows of N tokens, one row for each request.

    Attributes:
        rows, starts: rows of the cache, and the slot of each row's first token.
        tokens, depths: (B, N) ids, and distances from the row's first token in the tree.
        sees: (B, N, N) bool: which tokens of its row each token sees; None: all before it, and itself.
        cache: where the keys are written. first_positions, held: see `visible_slots`.
        finals: per row, the full model's (C,) final hidden state of the last committed token, or None where it is not
            known; None if the block does not begin with the root of a draft.
        key_block: the number of keys that they attend to is rounded up to a multiple of this (see `invariance`).
    """

    rows: Sequence[int]
    starts: Sequence[int]
    tokens: Tensor
    depths: Tensor
    sees: Tensor | None
    cache: KVCache
    first_positions: Sequence[int]
    held: Sequence[Tensor] | None = None
    finals: Sequence[Tensor | None] | None = None
    key_block: int = 1

    def row(self, index: int) -> Block:
        """Return the block of one of the rows."""
        one = slice(index, index + 1)
        return replace(
            self,
            rows=self.rows[one],
            starts=self.starts[one],
            tokens=self.tokens[one],
            depths=self.depths[one],
            sees=None if self.sees is None else self.sees[one],
            first_positions=self.first_positions[one],
            held=None if self.held is None else self.held[one],
            finals=None if self.finals is None else self.finals[one],
        )

    @staticmethod
    def of_trees(
        rows: Sequence[int],
        starts: Sequence[int],
        roots: Sequence[int],
        trees: Sequence[TokenTree],
        cache: KVCache,
        row_block: int,
        key_block: int,
    ) -> Block:
        """Return the block of every row's root and tree, padded to one number of tokens, a multiple of `row_block`."""
        width = -(-(1 + max(len(tree) for tree in trees)) // row_block) * row_block
        shape = len(rows), width
        # Filled by numpy: on slices of a few numbers, torch's calls take several times as long.
        tokens, depths, sees = np.empty(shape, np.int64), np.zeros(shape, np.int64), np.zeros((*shape, width), bool)
        sees[:, range(width), range(width)] = sees[:, :, 0] = True  # padding sees itself, and nobody sees it
        for b, (root, tree) in enumerate(zip(roots, trees, strict=True)):
            end = 1 + len(tree)
            tokens[b] = root
            if end > 1:
                tokens[b, 1:end], depths[b, 1:end] = tree.tokens.numpy(), tree.depths.numpy()
                sees[b, 1:end, 1:end] = tree.sees.numpy()
        made = [torch.from_numpy(each) for each in (tokens, depths, sees)]
        return Block(rows, starts, made[0], made[1], made[2], cache, starts, key_block=key_block)
