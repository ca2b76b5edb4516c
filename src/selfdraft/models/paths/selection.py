"""Draft with a selection of the text: the cache of `drafter/path=sparse_kv`, which holds only some of the keys.

The selected keys and values are copied into a small cache of their own, so that attention over a long prompt really
reads less. Keys keep the rotary positions that they were computed with, and a draft goes on at its position in the
whole text.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from selfdraft.core.errors import Unsupported
from selfdraft.models.cache.attention import NAME as GROUPED_SDPA
from selfdraft.models.cache.attention import grouped_sdpa
from selfdraft.models.cache.block import Block
from selfdraft.models.cache.cache import KVCache
from selfdraft.models.families.lightcopy import copy_of
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.path import Path, Runner, States, Trees
from selfdraft.models.forward.protocol import TargetProtocol

SCORED = "selfdraft_scored_sdpa"


class Selection:
    """The keys and values at chosen positions of the text, for each row of the cache."""

    def __init__(self, layers: int, rows: int) -> None:
        self.cache = KVCache(layers, rows, 0)
        self._chosen, self._ends = [torch.empty(0, dtype=torch.long)] * rows, [0] * rows

    def choose(self, row: int, source: KVCache, positions: Tensor, drafted: int = 0) -> None:
        """Copy the row's committed keys and values at `positions` (n,), ascending, from `source`.

        `drafted`: number of tokens of a draft, in the scratch slots after the committed ones, to copy as well.
        """
        end = source.lengths[row]
        self.cache.gather(row, source, torch.cat([positions, torch.arange(end, end + drafted)]))
        self.cache.lengths[row] = len(positions)
        self._chosen[row], self._ends[row] = positions, end

    def positions(self, row: int, offset: int) -> Tensor:
        """Return (n + offset,) positions of the row's slots: those chosen, then `offset` tokens of a draft."""
        end = self._ends[row]
        return torch.cat([self._chosen[row], torch.arange(end, end + offset)])


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


class _Scored(nn.Module):
    """A stock attention module that has a record for its scores."""

    scores: Scores


def scored_sdpa(
    module: _Scored,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Record the scores, then run `grouped_sdpa`."""
    module.scores.add(query, key, scaling)
    return grouped_sdpa(module, query, key, value, attention_mask, scaling, **kwargs)


AttentionInterface.register(SCORED, scored_sdpa)


@singledispatch
def scoring(target: TargetProtocol, path: Path) -> tuple[Path, Scores]:
    """Return `path` with attention that records its scores, and the record; for one row and one query that sees all.

    Raises:
        UserError: the family's attention cannot be observed, or it sees only a window.
    """
    driver, scores, layers = layered(target), Scores(), []
    name = driver.anatomy.attention_name
    for layer in path.layers:
        attention = getattr(layer, name)
        if not hasattr(attention, "config"):  # a skipped one
            layers.append(layer)
            continue
        if attention.config._attn_implementation != GROUPED_SDPA or driver.anatomy.window is not None:
            raise Unsupported(
                f"drafter.path.top_k: attention scores of model family '{driver.model.config.model_type}' cannot be "
                "read; use drafter.path.top_k=0, which keeps the sink and the recent tokens"
            )
        scored = copy_of(attention)
        scored.config = copy.copy(attention.config)
        scored.config._attn_implementation = SCORED
        scored.scores = scores
        changed = copy_of(layer)
        changed._modules = dict(layer._modules) | {name: scored}
        layers.append(changed)
    return replace(path, layers=tuple(layers)), scores


Choose = Callable[[Scores, int], None]


@dataclass(frozen=True)
class SelectedKeysPath(Path):
    """A path whose drafts attend to a selection of the committed keys only.

    Attributes:
        keys: the selection, by cache row.
        look: if given, the first forward sees all keys through this path, which records attention scores.
        scores: its record.
        choose: called after that forward with the record and the number of its tokens; must choose the row's keys.
    """

    keys: Selection = field(kw_only=True)
    look: Path | None = field(default=None, kw_only=True)
    scores: Scores | None = field(default=None, kw_only=True)
    choose: Choose | None = field(default=None, kw_only=True)

    def run(self, runner: Runner, block: Block, trees: Trees = (), states: States = None) -> Tensor:
        """See `Path.run`. A path with `look` serves one cache row."""
        if self.look is not None and self.scores is not None and self.scores.sums is None:
            hidden = self.look.run(runner, block, trees, states)
            assert self.choose is not None
            self.choose(self.scores, block.tokens.shape[1])
            return hidden
        offsets = [start - block.cache.lengths[row] for row, start in zip(block.rows, block.starts, strict=True)]
        pairs = list(zip(block.rows, offsets, strict=True))
        block = replace(
            block,
            cache=self.keys.cache,
            starts=[self.keys.cache.lengths[row] + offset for row, offset in pairs],
            held=[self.keys.positions(row, offset) for row, offset in pairs],
        )
        return self.drive(runner, block, states=states)


@singledispatch
def selection(target: TargetProtocol) -> Selection:
    """Return an empty selection of keys for every cache row."""
    return Selection(len(target.full.layers), target.cache.rows)


@singledispatch
def selecting(path: Path, target: TargetProtocol, keys: Selection, choose: Choose | None = None) -> Path:
    """Return `path` with drafts that attend to `keys` only.

    Its states are not those of the full model, which sees all keys, so verification cannot reuse them.

    Args:
        choose: if given, the draft's first forward sees all keys, and this chooses some by its attention scores.
    """
    own = {f.name: getattr(path, f.name) for f in fields(Path)} | {"leading": 0, "keys": keys}
    if choose is None:
        return SelectedKeysPath(**own)
    look, scores = scoring(target, path)
    return SelectedKeysPath(**own, look=look, scores=scores, choose=choose)
