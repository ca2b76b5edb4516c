"""The cache of models that run as a whole (see `stateful`): each request's text, with transformers' own cache of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import LinearAttentionCacheLayerMixin

Checkpoint = list[dict[str, Any]] | None  # by layer, the attributes of its cache; None: there is nothing to copy


def keeps_state(config: PreTrainedConfig | None) -> bool:
    """Return whether layers of a model keep a state besides keys and values, as its configuration says."""
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # a family with a cache of its own kind: its layers are looked at elsewhere
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


@dataclass
class Row:
    """The text of one request, and the cache of its first tokens.

    Attributes:
        tokens: all committed tokens. covered: how many of them the cache holds.
        checkpoint: the cache before the last block. block: how many tokens of that block may have to be dropped.
        scratch: the tokens of the draft that `draft_forward` writes.
        drops_tokens: whether the cache can forget its last tokens: it keeps what was before them.
    """

    tokens: list[int] = field(default_factory=list)
    covered: int = 0
    cache: Any = None
    checkpoint: Checkpoint = None
    block: list[int] = field(default_factory=list)
    scratch: list[int] = field(default_factory=list)
    drops_tokens: bool = False

    def copied(self) -> Checkpoint:
        """Return a copy of the states, and of what else the cache has: keys and values are never written in place."""
        if self.cache is None or self.drops_tokens:
            return None
        if not hasattr(self.cache, "layers"):
            return [{name: _cloned(value) for name, value in vars(self.cache).items()}]
        return [
            {name: _cloned(value) if isinstance(value, dict) else value for name, value in vars(layer).items()}
            for layer in self.cache.layers
        ]

    def undo(self, checkpoint: Checkpoint, dropped: int) -> None:
        """Make the cache forget its last `dropped` tokens, or what it took up since a checkpoint."""
        if dropped and not self.covered:  # there was no cache before
            self.cache, self.drops_tokens = None, False
        elif self.drops_tokens:
            self.cache.crop(-dropped)
        elif dropped and checkpoint is not None:
            for layer, saved in zip(_layers(self.cache), checkpoint, strict=True):
                layer.__dict__.update(saved)


class StateCache:
    """Rows of committed tokens, with the part of `KVCache`'s interface that decoding asks for."""

    def __init__(self, rows: int) -> None:
        self.held = [Row() for _ in range(rows)]

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(self.held)

    @property
    def lengths(self) -> list[int]:
        """Return the number of committed tokens of every row."""
        return [len(row.tokens) for row in self.held]

    @property
    def prefilled_at(self) -> list[int]:
        """Return lengths that say: never look for an earlier prefill, see `teacher_forced_in`."""
        return [0] * self.rows

    def clear(self, row: int) -> None:
        """Forget a row."""
        self.held[row] = Row()

    def reserve(self, slots: int) -> None:
        """Do nothing: transformers' cache grows with the text."""

    def move(self, source: int, destination: int) -> None:
        """Give a row's text to another row; the source is empty afterwards."""
        self.held[destination], self.held[source] = self.held[source], Row()


def checkpoint_bytes(row: Row) -> int:
    """Return the bytes that a checkpoint of a row copies."""
    states = (value for layer in _layers(row.cache) for value in vars(layer).values() if isinstance(value, dict))
    return sum(tensor.nbytes for each in states for tensor in _tensors(each))


def _layers(cache: Any) -> list[Any]:
    """Return what holds the states: the cache of each layer, or a cache (xLSTM's) that has the states of all layers."""
    return getattr(cache, "layers", [cache])


def _cloned(value: Any) -> Any:
    """Copy tensors, also those in dictionaries and tuples; other values stay as they are."""
    if isinstance(value, dict):
        return {name: _cloned(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_cloned, value))
    return value.clone() if isinstance(value, Tensor) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)
