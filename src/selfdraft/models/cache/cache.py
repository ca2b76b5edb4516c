"""The target's key/value cache, in which drafting and rejecting cost no copy.

A row belongs to one request. Its first ``lengths[row]`` slots hold the committed tokens, and the slots after them are
scratch. Drafts write their keys to scratch slots. To accept them, the length grows; to reject them, nothing is done,
because the next forward overwrites these slots. Memory is allocated in advance.

Shapes: R cache rows (one a request), S slots, H key/value heads, D head size, N tokens of one forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 128  # slots by which the cache grows: few reallocations, little waste


class KVCache:
    """Keys and values of every layer, for R rows of S slots each.

    Memory is allocated when a layer is first written, in the shape that the layer produces, so this class need not know
    the head sizes of families. All layers share one tensor, so moving tokens is one operation, not two for each layer.
    A layer with another shape gets tensors of its own.

    Attributes:
        lengths: committed tokens of every row.
        prefilled_at: per row, how long its text was when it was prefilled, the first root included (see `rotary`).
        finals: per row, the full model's (C,) final hidden state of the last committed token; None if not known.
        drafted: per row, the first scratch slot and the (n, C) final hidden states that a `JumpPath` left for the n
            tokens from there on; None if it left none.
    """

    def __init__(self, layers: int, rows: int, slots: int) -> None:
        self.rows, self.slots = rows, _in_blocks(slots)
        self.lengths = [0] * rows
        self.prefilled_at = [0] * rows
        self.finals: list[Tensor | None] = [None] * rows
        self.drafted: list[tuple[int, Tensor] | None] = [None] * rows
        self._shared: Tensor | None = None  # (2, L, R, H, S, D): keys, then values
        self._keys: list[Tensor | None] = [None] * layers  # (R, H, S, D) each: a view of `_shared`, or a tensor apart
        self._values: list[Tensor | None] = [None] * layers
        self._apart: set[int] = set()  # layers whose shapes, dtype or device are others

    @torch.inference_mode()
    def reserve(self, slots: int) -> None:
        """Grow to at least `slots` slots a row, keeping what is committed."""
        slots = _in_blocks(slots)
        if slots <= self.slots:
            return
        shared = None if self._shared is None else self._grown(self._shared, slots)
        for side, tensors in enumerate((self._keys, self._values)):
            for i, old in enumerate(tensors):
                if old is not None:
                    tensors[i] = self._grown(old, slots) if shared is None or i in self._apart else shared[side, i]
        self._shared, self.slots = shared, slots

    def _grown(self, old: Tensor, slots: int) -> Tensor:
        new = old.new_zeros(*old.shape[:-2], slots, old.shape[-1])
        new[..., : self.slots, :] = old
        return new

    def window(self, rows: Sequence[int], starts: Sequence[int], width: int, *, key_block: int = 1) -> CacheWindow:
        """Return one forward's view of the cache: writes `width` tokens of ``rows[i]`` from slot ``starts[i]`` on.

        Args:
            key_block: round the number of keys that layers are given up to a multiple of this.
        """
        span = -(-(max(starts) + width) // key_block) * key_block
        self.reserve(span)
        return CacheWindow(self, list(rows), list(starts), width, span)

    @torch.inference_mode()
    def commit(self, row: int, nodes: Sequence[int]) -> None:
        """Keep the root and the accepted nodes of the last forward's tree; everything else becomes scratch again.

        Args:
            row: cache row.
            nodes: indices of the accepted nodes in the tree, ascending (node i was written at slot length + 1 + i).
        """
        length = self.lengths[row]
        kept = len(nodes)
        if kept and nodes[-1] != kept - 1:  # not a prefix of the block: gather the nodes' slots
            source = torch.tensor(nodes) + (length + 1)
            for tensor in self._tensors():
                of_row = tensor[..., row, :, :, :]
                # The right-hand side is a copy, so overlapping source and destination slots are safe.
                of_row[..., length + 1 : length + 1 + kept, :] = of_row[..., source.to(tensor.device), :]
        self.lengths[row] = length + 1 + kept

    def extend(self, row: int, count: int) -> None:
        """Commit the next `count` slots, which a prefill forward has written."""
        self.lengths[row] += count

    @torch.inference_mode()
    def move(self, source: int, destination: int) -> None:
        """Copy a row's committed tokens into another row."""
        length = self.lengths[destination] = self.lengths[source]
        self.finals[destination] = self.finals[source]
        self.drafted[destination] = self.drafted[source]
        self.prefilled_at[destination] = self.prefilled_at[source]
        self._copy(source, destination, length)

    def copy_prefix(self, source: int, destination: int, length: int) -> None:
        """Make a row's committed tokens the first `length` ones of a row: another one, or itself."""
        final = self.finals[source] if length == self.lengths[source] else None
        self.clear(destination)
        self.lengths[destination], self.finals[destination] = length, final
        if source != destination:
            self._copy(source, destination, length)

    @torch.inference_mode()
    def _copy(self, source: int, destination: int, length: int) -> None:
        for tensor in self._tensors():
            tensor[..., destination, :, :length, :] = tensor[..., source, :, :length, :]

    @torch.inference_mode()
    def gather(self, row: int, source: KVCache, positions: Tensor) -> None:
        """Replace a row's committed tokens by those that another cache holds in the same row at `positions` (n,)."""
        count = self.lengths[row] = len(positions)
        self.reserve(count)
        for layer, (keys, values) in enumerate(zip(source._keys, source._values, strict=True)):
            if keys is not None and values is not None:
                for mine, theirs in zip(self._layer(layer, keys, values), (keys, values), strict=True):
                    mine[row, :, :count] = theirs[row].index_select(1, positions.to(theirs.device))

    def clear(self, row: int) -> None:
        """Forget a row."""
        self.lengths[row], self.prefilled_at[row], self.finals[row], self.drafted[row] = 0, 0, None, None

    def rewind(self, row: int, length: int) -> None:
        """Forget the committed tokens of a row after the first `length`."""
        if length < self.lengths[row]:
            self.lengths[row], self.finals[row] = length, None

    def drafted_before(self, row: int, slot: int) -> Tensor | None:
        """Return the (C,) final hidden state that a `JumpPath` left for the token before a slot, or None."""
        first, states = self.drafted[row] or (slot, None)
        return None if states is None or not 0 < slot - first <= len(states) else states[slot - first - 1]

    def megabytes(self) -> float:
        """Memory held, in MB (10^6 bytes)."""
        return sum(tensor.nbytes for tensor in self._tensors()) / 1e6

    def _tensors(self) -> list[Tensor]:
        """Return the memory of all layers: tensors of the shape (…, R, H, S, D) that do not overlap."""
        apart = [tensors[i] for tensors in (self._keys, self._values) for i in self._apart]
        return [tensor for tensor in (self._shared, *apart) if tensor is not None]

    def _layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's memory, (R, H, S, D) each; its first keys and values decide the shape."""
        if self._keys[index] is None:
            shapes = [(self.rows, new.shape[1], self.slots, new.shape[3]) for new in (keys, values)]
            if self._shared is None and shapes[0] == shapes[1]:
                self._shared = keys.new_zeros(2, len(self._keys), *shapes[0])
            shared = self._shared
            if shared is not None and all(
                (shape, new.dtype, new.device) == (shared.shape[2:], shared.dtype, shared.device)
                for shape, new in zip(shapes, (keys, values), strict=True)
            ):
                self._keys[index], self._values[index] = shared[:, index]
            else:
                self._keys[index], self._values[index] = keys.new_zeros(shapes[0]), values.new_zeros(shapes[1])
                self._apart.add(index)
        return self._keys[index], self._values[index]  # type: ignore[return-value]  # both are allocated above


class CacheWindow:
    """The cache as the layers of one forward see it. Stock attention layers call it like transformers' own.

    The slots are fixed when the window is made, so that all layers write to the same ones, even if some are skipped.
    """

    def __init__(self, cache: KVCache, rows: list[int], starts: list[int], width: int, span: int) -> None:
        self._cache, self._rows, self._starts, self._width = cache, rows, starts, width
        self.span = span  # keys that layers are given; those after the written ones are masked
        self._indices: dict[torch.device, tuple[Tensor, Tensor]] = {}  # layers may be on several devices
        self.before: Tensor | None = None  # (N,) what layers add the numbers 0, 1, … to, to get the tokens' positions
        self.asked = False  # whether a layer wanted the number of tokens before this forward

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write one layer's (B, H, N, D) keys and values; return those of all slots up to the span, (B, H, span, D)."""
        all_keys, all_values = self._cache._layer(layer_idx, keys, values)
        if len(self._rows) == 1:
            row, start = self._rows[0], self._starts[0]
            row_keys, row_values = all_keys[row : row + 1], all_values[row : row + 1]
            row_keys[:, :, start : start + self._width] = keys
            row_values[:, :, start : start + self._width] = values
            return row_keys[:, :, : self.span], row_values[:, :, : self.span]
        if keys.device not in self._indices:
            rows = torch.tensor(self._rows, device=keys.device)[:, None]
            slots = torch.tensor(self._starts, device=keys.device)[:, None] + torch.arange(
                self._width, device=keys.device
            )
            self._indices[keys.device] = rows, slots
        rows, slots = self._indices[keys.device]
        # Advanced indices around a slice put the indexed dimensions first: (B, N, H, D).
        all_keys[rows, :, slots] = keys.transpose(1, 2)
        all_values[rows, :, slots] = values.transpose(1, 2)
        if self._rows == list(range(len(self._rows))):
            count = len(self._rows)  # the usual case: a view, no copy of the cache
            return all_keys[:count, :, : self.span], all_values[:count, :, : self.span]
        return all_keys[rows.flatten(), :, : self.span], all_values[rows.flatten(), :, : self.span]

    def read(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return a layer's keys and values of all slots up to the span, (B, H, span, D); None if it has none yet."""
        keys, values = self._cache._keys[layer], self._cache._values[layer]
        if keys is None or values is None:
            return None
        rows: Any = slice(self._rows[0], self._rows[0] + 1)
        if len(self._rows) > 1:
            rows = torch.tensor(self._rows, device=keys.device)
        return keys[rows, :, : self.span], values[rows, :, : self.span]

    @property
    def starts(self) -> Sequence[int]:
        """The slot of each row's first new token."""
        return self._starts

    @property
    def slots(self) -> int:
        """Slots of the whole cache, S."""
        return self._cache.slots

    @property
    def rows(self) -> Sequence[int]:
        """The row of the cache of each row of the forward."""
        return self._rows

    def places(self, like: Mapping[int, tuple[Tensor, Tensor]]) -> np.ndarray:
        """Return where keys and values are in memory: (2, layers, B) addresses of (H, S, D) numbers, keys first.

        Args:
            like: see `held`.
        """
        cache = self._cache
        for index, shapes in like.items():
            if cache._keys[index] is None:
                cache._layer(index, *shapes)
        layers, rows = np.array(list(like), dtype=np.int64), np.array(self._rows, dtype=np.int64)
        if cache._shared is not None and not cache._apart:
            sides, step_of_layer, step_of_row, size = *cache._shared.stride()[:3], cache._shared.itemsize
            steps = layers[:, None] * step_of_layer + rows * step_of_row
            return cache._shared.data_ptr() + size * (np.arange(2)[:, None, None] * sides + steps)
        memory = [cache._layer(index, *shapes) for index, shapes in like.items()]
        firsts = np.array([[layer[side].data_ptr() for layer in memory] for side in (0, 1)], dtype=np.int64)
        steps = np.array([[layer[side].stride(0) * layer[side].itemsize for layer in memory] for side in (0, 1)])
        return firsts[:, :, None] + steps[:, :, None] * rows

    def held(self, like: Mapping[int, tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Return the keys, then the values of several layers in all slots of these rows, each (B, H, S, D).

        Args:
            like: by layer, keys and values of any tokens: layers that were never written get memory of that shape.
        """
        first, count = self._rows[0], len(self._rows)
        layers = [self._cache._layer(index, *shapes) for index, shapes in like.items()]
        both = [layer[side] for side in (0, 1) for layer in layers]
        if self._rows == list(range(first, first + count)):
            return [tensor[first : first + count] for tensor in both]  # views
        rows = torch.tensor(self._rows)
        return [tensor.index_select(0, rows) for tensor in both]

    def store(self, layers: Sequence[int], new: Tensor) -> None:
        """Write the new keys and values of several layers, (2 * layers, B, H, N, D), keys first."""
        count, shared = len(layers), self._cache._shared
        if shared is not None and not self._cache._apart and list(layers) == list(range(layers[0], layers[0] + count)):
            both = new.view(2, count, *new.shape[1:])
            for at, (row, start) in enumerate(zip(self._rows, self._starts, strict=True)):
                shared[:, layers[0] : layers[0] + count, row, :, start : start + self._width] = both[:, :, at]
            return
        for at, layer in enumerate(layers):
            self.update(new[at], new[count + at], layer)

    def get_seq_length(self, layer_idx: int = 0) -> int | Tensor:
        """Return the number of tokens before this forward, which some families' layers ask for."""
        self.asked = True
        return self._starts[0] if self.before is None else self.before


def _in_blocks(slots: int) -> int:
    return -(-slots // BLOCK) * BLOCK
