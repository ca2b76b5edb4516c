"""A table of the model's predictions after short contexts: n-grams of Jacobi trajectories, and recycled tokens.

Verifying a tree gives the model's best next tokens after every node, including rejected ones. Stored by the last
token, these are the edges of token recycling; stored by the last two or three, the n-grams of a Jacobi trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Context = tuple[int, ...]
Weighted = list[tuple[int, float]]

BLOCK = 256


class PredictionTable:
    """Contexts of a few tokens, each with the model's latest predictions after it."""

    def __init__(self, earlier: PredictionTable | None = None) -> None:
        """Make an empty table.

        Args:
            earlier: a table of other texts, used for contexts that this one lacks; all that is recorded here is also
                recorded there.
        """
        self.earlier = earlier
        self._table: dict[Context, Weighted] = {}

    def record(self, contexts: Sequence[Context], predictions: Sequence[Weighted]) -> None:
        """Record the predictions after each context, the best first, for the context and for all its suffixes."""
        for context, following in zip(contexts, predictions, strict=True):
            for first in range(len(context)):
                self._table[context[first:]] = following
        if self.earlier is not None:
            self.earlier.record(contexts, predictions)

    def after(self, context: Context) -> list[tuple[int, Weighted]]:
        """Return (length, predictions) for each known suffix of a context, the longest first."""
        suffixes = (context[first:] for first in range(len(context)))
        return [(len(suffix), found) for suffix in suffixes if (found := self._known(suffix)) is not None]

    def _known(self, context: Context) -> Weighted | None:
        found = self._table.get(context)
        return self.earlier._known(context) if found is None and self.earlier is not None else found

    def __len__(self) -> int:
        return len(self._table)


def best_tokens(logits: Tensor, count: int) -> Tensor:
    """Return (2, n, count): the best tokens of each row of (n, V) logits, the best first, and their chances.

    The chances are a softmax over these `count` tokens only. Both are doubles, which hold ids exactly, so that one
    tensor carries both to the host. Each of the `count` best tokens is in one of the `count` slices of `BLOCK` logits
    with the highest maxima, so only these are searched. That takes a quarter of the time of `topk` over a vocabulary.
    """
    n, vocabulary = logits.shape
    if vocabulary % BLOCK or vocabulary // BLOCK < count:
        values, tokens = logits.topk(count, dim=-1)
    else:
        blocks = logits.view(n, -1, BLOCK)
        chosen = blocks.amax(-1).topk(count, dim=-1).indices
        found = blocks.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK)).view(n, -1)
        values, at = found.topk(count, dim=-1)
        tokens = chosen.gather(1, at // BLOCK) * BLOCK + at % BLOCK
    return torch.stack([tokens.double(), values.float().softmax(-1).double()])


def weighted(best: Tensor) -> list[Weighted]:
    """Return, for each row, the (token, chance) pairs of a result of `best_tokens`."""
    ids, chances = best[0].long().tolist(), best[1].tolist()
    return [list(zip(row, chance, strict=True)) for row, chance in zip(ids, chances, strict=True)]
