"""What the model has been seen to predict after short contexts: the n-grams of Jacobi trajectories and recycled tokens.

A verified tree tells the model's best next tokens at every node, at rejected ones too. Kept under the node's last token
they are token recycling's edges; under its last two or three tokens, the n-grams of a Jacobi trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Context = tuple[int, ...]
Weighted = list[tuple[int, float]]

BLOCK = 256


class PredictionTable:
    """Contexts of a few tokens, each with what the model predicted when it last read them."""

    def __init__(self, earlier: PredictionTable | None = None) -> None:
        """Empty.

        Args:
            earlier: what other texts have left, for contexts that this one has not had; it learns all that is recorded.
        """
        self.earlier = earlier
        self._table: dict[Context, Weighted] = {}

    def record(self, contexts: Sequence[Context], predictions: Sequence[Weighted]) -> None:
        """Predictions after contexts, the best first; they stand for the contexts' suffixes too."""
        for context, following in zip(contexts, predictions, strict=True):
            for first in range(len(context)):
                self._table[context[first:]] = following
        if self.earlier is not None:
            self.earlier.record(contexts, predictions)

    def after(self, context: Context) -> list[tuple[int, Weighted]]:
        """What is known of a context's suffixes: how long each is and what was predicted, the longest first."""
        suffixes = (context[first:] for first in range(len(context)))
        return [(len(suffix), found) for suffix in suffixes if (found := self._known(suffix)) is not None]

    def _known(self, context: Context) -> Weighted | None:
        found = self._table.get(context)
        return self.earlier._known(context) if found is None and self.earlier is not None else found

    def __len__(self) -> int:
        return len(self._table)


def best_tokens(logits: Tensor, count: int) -> Tensor:
    """(2, n, count) the best tokens of each row of (n, V) logits, the best first, and their chances among themselves.

    As doubles, which hold ids exactly, so that both travel as one tensor. Of `count` best tokens each stands in one of
    the `count` blocks with the highest maxima. So only these are searched, which takes a quarter of the time of `topk`
    over a whole vocabulary.
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
    """By row, the tokens of `best_tokens` with their chances."""
    ids, chances = best[0].long().tolist(), best[1].tolist()
    return [list(zip(row, chance, strict=True)) for row, chance in zip(ids, chances, strict=True)]
