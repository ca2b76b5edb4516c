"""Check that a target still matches its model, because users train and change models between two calls.

A target holds copies: of module objects (their attributes, hooks and adapters' switches), and on a CPU of matrices in
another layout. torch reports no change: fused optimizers, `p.data` and numpy views do not even raise a tensor's
version. Therefore

1. the attributes of modules and configurations that the copies depend on are compared with their earlier values;
2. each row of every matrix that has a packed copy is summed as integers, over all its bits, so that one changed number
   changes its row's sum. That reads the weights once per call, which takes less than a forward of one token.

Matrices that are shared, which are all of them on a GPU or with `packed=False`, need no sums. A graph of compiled
layers holds copies of everything, so all that it was made from is summed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.packing import PackedLinear

_LANE = 8  # bytes that are summed as one integer


class Currency:
    """Records the state of a model when a target was made from it, to tell later whether it has changed."""

    def __init__(self, target: Target) -> None:
        """Record the state of the model of `target`, which was made a moment ago."""
        model = target.model
        self._model = model
        watched = dict.fromkeys(model.modules(), _watched)
        if not isinstance(target, StatefulTarget):  # which takes no rope that changes
            watched |= dict.fromkeys(target.anatomy.rotary.modules(), _watched_calls)  # others change with texts
        self._modules = [(m, type(m), attributes, _frozen(attributes(m))) for m, attributes in watched.items()]
        self._forwards = {type(m): type(m).forward for m in watched}
        self._configs = [(config, _frozen(vars(config))) for config in _configs(model)]
        self._storage = _storage(model)
        packed = [linear for linear in target.linears() if isinstance(linear, PackedLinear)]
        copied = {id(t): t for linear in packed for t in (*linear.weights, *linear.biases)}
        if target.compiled:  # a graph holds everything that its layers have, norms included
            copied |= {
                id(t): t for module in (*target.anatomy.layers, target.anatomy.head) for t in module.parameters()
            }
        self._sums = [(tensor, row_sums(tensor)) for tensor in copied.values()]

    def holds(self, model: nn.Module) -> bool:
        """Whether `model` is the same object, and nothing that copies were made from has changed."""
        return model is self._model and self._same_objects() and self._same_numbers()

    def _same_objects(self) -> bool:
        try:
            return (
                all(type(m) is kind and attributes(m) == then for m, kind, attributes, then in self._modules)
                and all(kind.forward is forward for kind, forward in self._forwards.items())
                and all(vars(config) == then for config, then in self._configs)
                and self._storage == _storage(self._model)
            )
        except (RuntimeError, ValueError):  # a tensor or array was replaced: they do not compare to one bool
            return False

    def _same_numbers(self) -> bool:
        return all(np.array_equal(row_sums(tensor), then) for tensor, then in self._sums)


def row_sums(tensor: Tensor) -> np.ndarray:
    """Sum the bits of each row of a CPU tensor (r, ...) as 64-bit integers, modulo 2^64.

    Returns:
        (r,) sums; one sum for a vector. Zeros are appended to a row whose bytes do not fill whole integers.
    """
    plain = tensor.detach().contiguous()
    rows = plain.view(len(plain), -1) if plain.dim() > 1 else plain.view(1, -1)
    octets = rows.view(torch.uint8).numpy()
    if octets.ctypes.data % _LANE or octets.shape[1] % _LANE:
        octets = np.ascontiguousarray(np.pad(octets, ((0, 0), (0, -octets.shape[1] % _LANE))))
    return octets.view(np.int64).sum(axis=1)


def _watched(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that copies depend on. Only the parts of a model are copied, not its object."""
    own = module.__dict__
    if isinstance(module, PreTrainedModel):
        return {name: own[name] for name in ("_modules", "_parameters", "_buffers", "config")}
    return own


def _watched_calls(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that redirect a module's calls; its others may change from call to call (rotary tables)."""
    own = module.__dict__
    return {name: own[name] for name in ("_forward_hooks", "_forward_pre_hooks", "forward") if name in own}


def _frozen(value: Any) -> Any:
    """Copy containers at every depth, so that a later change in place is noticed; other objects are not copied."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_frozen(item) for item in value]
    return set(value) if isinstance(value, set) else value


def _configs(model: PreTrainedModel) -> Iterator[PreTrainedConfig]:
    """Yield the configurations that modules hold, and those inside them."""
    waiting = [model.config, *(getattr(m, "config", None) for m in model.modules())]
    seen: set[int] = set()
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            waiting += vars(config).values()
            yield config


def _storage(model: PreTrainedModel) -> list[tuple[int, int, torch.dtype]]:
    """Return every parameter's address, dtype and version, which counts the writes that torch knows of."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in model.parameters()]
