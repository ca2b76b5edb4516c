"""Faults in the verification, planted in a target within a `with`: a certificate must never call them exact.

Each is a mistake that somebody could make in the cache, the masks, the positions or the parts of the model. All of them
act on the autoregressive baseline or on drafts, most on both, so that comparing one with the other shows nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import MethodType
from unittest.mock import patch

import torch
from torch import Tensor, nn

from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.block import Block
from selfdraft.models.cache.cache import CacheWindow, KVCache
from selfdraft.models.families.lightcopy import light_copy
from selfdraft.models.forward.target import Target

Fault = Callable[[Target], AbstractContextManager[None]]


@contextmanager
def _rotary(target: Target, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The rotary embedding, with positions changed before it."""
    right = target.rotary

    def other(hidden: Tensor, positions: Tensor, *others: object) -> tuple[Tensor, Tensor]:
        return right(hidden, change(positions), *others)

    other.rules, other.alike_after = right.rules, right.alike_after  # type: ignore[attr-defined]
    other.recomputed_past = right.recomputed_past  # type: ignore[attr-defined]
    with patch.object(target, "rotary", other):
        yield


def wrong_rotary(target: Target) -> AbstractContextManager[None]:
    """Frequencies of another base, as if positions were further apart."""
    return _rotary(target, lambda positions: positions * 1.25)


def shifted_position(target: Target) -> AbstractContextManager[None]:
    """From a limit on, every position is one too far."""
    return _rotary(target, lambda positions: positions + (positions > 12))


def block_decides_the_rotary(target: Target) -> AbstractContextManager[None]:
    """Longrope as it was: the furthest position of a block decides the factors of all of its tokens."""
    return _rotary(target, lambda positions: positions * (1.25 if int(positions.max()) >= 24 else 1.0))


@contextmanager
def slots_for_positions(target: Target) -> Iterator[None]:
    """A node's position is its slot's, not its depth: wrong for every node after a sibling."""
    right = Block.of_trees

    def by_slot(*arguments: object) -> Block:
        block = right(*arguments)  # type: ignore[arg-type]
        return replace(block, depths=torch.arange(block.depths.shape[1]).expand_as(block.depths))

    with patch.object(Block, "of_trees", staticmethod(by_slot)):
        yield


@contextmanager
def siblings_seen(target: Target) -> Iterator[None]:
    """A node sees every node before it, its siblings too."""
    with patch.object(TokenTree, "sees", property(lambda tree: torch.ones(len(tree), len(tree), dtype=bool).tril())):
        yield


@contextmanager
def wrong_slots_committed(target: Target) -> Iterator[None]:
    """The accepted nodes' keys are read from the beginning of the block, as those of a chain."""
    right = KVCache.commit
    with patch.object(KVCache, "commit", lambda cache, row, path: right(cache, row, range(len(path)))):
        yield


@contextmanager
def _updating(change: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    right = CacheWindow.update

    def update(window: CacheWindow, keys: Tensor, values: Tensor, layer_idx: int, *others: object, **more: object):
        return change(right, window, keys, values, layer_idx)

    with patch.object(CacheWindow, "update", update):
        yield


def stale_key(target: Target) -> AbstractContextManager[None]:
    """In one layer, the keys of every eighth slot stay what they were before."""

    def change(right, window: CacheWindow, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer == 1:
            held = window._cache._layer(layer, keys, values)[0]
            for b, (row, start) in enumerate(zip(window._rows, window._starts, strict=True)):
                for slot in range(start, start + keys.shape[2]):
                    if slot % 8 == 3:
                        keys[b, :, slot - start] = held[row, :, slot]
        return right(window, keys, values, layer)

    return _updating(change)


def wrong_layers_key(target: Target) -> AbstractContextManager[None]:
    """One layer looks at the keys of the layer before it."""

    def change(right, window: CacheWindow, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        found = right(window, keys, values, layer)
        if layer == 2:
            return window._cache._keys[1][window._rows, :, : window.span], found[1]  # type: ignore[index]
        return found

    return _updating(change)


def neighbours_row(target: Target) -> AbstractContextManager[None]:
    """In a batch, the second request reads the first one's keys."""

    def change(right, window: CacheWindow, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        k, v = right(window, keys, values, layer)
        if len(window._rows) > 1:
            k = k.clone()
            k[1] = k[0]
        return k, v

    return _updating(change)


@contextmanager
def future_seen(target: Target) -> Iterator[None]:
    """In blocks, the last token's mask is everybody's: tokens see what comes after them."""
    right = Block.of_trees

    def all_seen(*arguments: object) -> Block:
        block = right(*arguments)  # type: ignore[arg-type]
        return replace(block, sees=None if block.sees is None else torch.ones_like(block.sees))

    with patch.object(Block, "of_trees", staticmethod(all_seen)):
        yield


@contextmanager
def weights_of_before(target: Target) -> Iterator[None]:
    """The drive has weights of its own in one layer, and the model has been trained since."""

    def swap(name: str, module: nn.Module) -> nn.Module | None:
        if name != "post_attention_layernorm":
            return None
        other = copy.copy(module)
        other._parameters = {"weight": nn.Parameter(module.weight * 1.5, False)}
        return other

    layers = list(target.full.layers)
    layers[1] = light_copy(layers[1], swap)
    with patch.object(target, "full", replace(target.full, layers=tuple(layers))):
        yield


@contextmanager
def token_left_out(target: Target) -> Iterator[None]:
    """The prompt's first token is not in the cache: every position is one too small."""

    def prefill(self: Target, row: int, tokens) -> None:
        if not self.cache.lengths[row]:
            tokens = tokens[1:]
        self.fill(self.full, tokens, self.cache, row)

    with patch.object(target, "prefill", MethodType(prefill, target)):
        yield


# Those that act on every forward, so that the autoregressive baseline has them too; and those that only drafts meet.
EVERYWHERE: list[Fault] = [
    wrong_rotary,
    shifted_position,
    stale_key,
    wrong_layers_key,
    token_left_out,
    weights_of_before,
]
IN_DRAFTS: list[Fault] = [
    block_decides_the_rotary,
    slots_for_positions,
    siblings_seen,
    future_seen,
    wrong_slots_committed,
]
