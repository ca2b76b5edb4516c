"""Sparse keys: drafting that attends to a selection of the text instead of to all of it.

The selected keys and values are gathered into a small cache of their own, so that attention over a long prompt really
reads less. Keys keep the rotary positions that they were computed with, and a draft goes on at its position in the
whole text.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from selfdraft.core.errors import UserError
from selfdraft.models.attention import NAME as GROUPED_SDPA
from selfdraft.models.attention import grouped_sdpa
from selfdraft.models.cache import KVCache

if TYPE_CHECKING:
    from selfdraft.models.sparse import Path
    from selfdraft.models.target import Target

SCORED = "selfdraft_scored_sdpa"


class Selection:
    """Per cache row, the keys and values at chosen positions of its text."""

    def __init__(self, layers: int, rows: int) -> None:
        self.cache = KVCache(layers, rows, 0)
        self._chosen, self._behind = [torch.empty(0, dtype=torch.long)] * rows, [0] * rows

    def choose(self, row: int, source: KVCache, positions: Tensor, drafted: int = 0) -> None:
        """Copy the row's committed keys and values at `positions` (n,), ascending, from `source`.

        `drafted`: number of tokens of a draft, in the scratch slots after the committed ones, to copy as well.
        """
        end = source.lengths[row]
        self.cache.gather(row, source, torch.cat([positions, torch.arange(end, end + drafted)]))
        self.cache.lengths[row] = len(positions)
        self._chosen[row], self._behind[row] = positions, end

    def positions(self, row: int, offset: int) -> Tensor:
        """Return (n + offset,) positions of the row's slots: those chosen, then `offset` tokens of a draft."""
        behind = self._behind[row]
        return torch.cat([self._chosen[row], torch.arange(behind, behind + offset)])


class Scores:
    """The attention that each key got from the last query of a forward, summed over heads and layers."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Add the attention of one layer: query (B, H, N, D), of which only the last counts; key (B, G, K, D)."""
        size = query.shape[-1]
        last = query[:, :, -1].reshape(len(query), key.shape[1], -1, size)
        scores = last @ key.transpose(-1, -2) * (size**-0.5 if scaling is None else scaling)
        weight = scores.float().softmax(-1).sum((1, 2))
        self.sums = weight if self.sums is None else self.sums + weight

    def best(self, count: int, first: int, end: int) -> Tensor:
        """Return the (count,) positions from `first` up to `end`, ascending, of row 0's keys with most attention."""
        assert self.sums is not None
        return first + self.sums[0, first:end].topk(min(count, end - first)).indices.sort().values.cpu()


def scored_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Record the scores, then run `grouped_sdpa`."""
    module.scores.add(query, key, scaling)
    return grouped_sdpa(module, query, key, value, attention_mask, scaling, **kwargs)


AttentionInterface.register(SCORED, scored_sdpa)


def scoring(target: Target, path: Path) -> tuple[Path, Scores]:
    """Return `path` with attention that records its scores, and the record; for one row and one query that sees all.

    Raises:
        UserError: the family's attention cannot be observed, or it sees only a window.
    """
    name, scores, layers = target.anatomy.attention_name, Scores(), []
    for layer in path.layers:
        attention = getattr(layer, name)
        if not hasattr(attention, "config"):  # a skipped one
            layers.append(layer)
            continue
        if attention.config._attn_implementation != GROUPED_SDPA or target.anatomy.window is not None:
            raise UserError(
                f"drafter.top_k: attention scores of model family '{target.model.config.model_type}' cannot be "
                "read; use drafter.top_k=0, which keeps the sink and the recent tokens"
            )
        twin = copy.copy(attention)
        twin.config = copy.copy(attention.config)
        twin.config._attn_implementation = SCORED
        twin.scores = scores
        other = copy.copy(layer)
        other._modules = dict(layer._modules) | {name: twin}
        layers.append(other)
    return replace(path, layers=tuple(layers)), scores
