"""Call our C++: several layers in one call, a norm, or a product with one matrix.

The structures here mirror those of layers.cpp and hold addresses of tensors. A call writes the new keys and values
straight into the cache.

Shapes: B rows of one forward, N tokens a row, C hidden size, G key/value heads, D head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_float, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from selfdraft.models.cache.cache import CacheWindow
from selfdraft.models.families.rotary import Rotation
from selfdraft.models.kernels.native.build import library
from selfdraft.models.kernels.native.parts import MLP, Attention, Norm
from selfdraft.models.kernels.native.stored import CMatrix, Stored


class _CLayer(ctypes.Structure):
    """`Layer` of layers.cpp."""

    _fields_ = [
        *((name, CMatrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, c_void_p) for name in ("norm", "norm_mlp", "norm_q", "norm_k")),
        *((name, c_float) for name in ("eps", "eps_mlp", "eps_head", "scale")),
        *((name, c_int64) for name in ("activation", "kind", "slot_of_cache")),
    ]


class _CKind(ctypes.Structure):
    """`Kind` of layers.cpp."""

    _fields_ = [(name, c_void_p) for name in ("cosines", "sines", "visible")]


class _CCall(ctypes.Structure):
    """`Call` of layers.cpp."""

    _fields_ = [
        ("hidden", c_void_p),
        *(
            (name, c_int64)
            for name in ("rows", "tokens", "width", "heads", "groups", "size", "rotated", "span", "kinds")
        ),
        ("by_kind", POINTER(_CKind)),
        *((name, c_void_p) for name in ("starts", "keys", "values")),
        ("slots", c_int64),
    ]


@dataclass(frozen=True)
class NativeLayer:
    """One layer as our C++ takes it; no attention or MLP where a path leaves it out. `kind`: its attention type."""

    norm: Norm
    norm_mlp: Norm
    attention: Attention | None
    mlp: MLP | None
    kind: str

    @property
    def alike(self) -> tuple[int, ...]:
        """Equal for layers that cost the same: the bytes of their matrices."""
        a, m = self.attention, self.mlp
        matrices = ([a.q, a.k, a.v, a.o] if a else []) + ([m.gate, m.up, m.down] if m else [])
        return len(matrices), *(each.nbytes for each in matrices)


class NativeLayers:
    """Several layers that our C++ runs in one call, one after the other; a `path.Graph`."""

    def __init__(self, layers: Sequence[NativeLayer], threads: int) -> None:
        self._layers, self._threads = list(layers), threads
        self.kinds = sorted({layer.kind for layer in layers})
        attentions = [layer.attention for layer in layers if layer.attention is not None]
        self.indices = [each.index for each in attentions]
        self.alike = tuple(layer.alike for layer in layers)
        self._sizes = (attentions[0].heads, attentions[0].groups, attentions[0].size) if attentions else (0, 1, 0)
        shape = (1, self._sizes[1], 1, self._sizes[2])
        self._like = {each.index: (torch.empty(shape), torch.empty(shape)) for each in attentions}
        order = {index: at for at, index in enumerate(self._like)}
        self._described = (_CLayer * len(layers))(*(self._describe(layer, order) for layer in layers))

    def _describe(self, layer: NativeLayer, order: Mapping[int, int]) -> _CLayer:
        described = _CLayer(norm=layer.norm.weight.data_ptr(), norm_mlp=layer.norm_mlp.weight.data_ptr())
        described.eps, described.eps_mlp = layer.norm.eps, layer.norm_mlp.eps
        described.kind = self.kinds.index(layer.kind)
        if (attention := layer.attention) is not None:
            for name in ("q", "k", "v", "o"):
                setattr(described, name, getattr(attention, name).described())
            for name in ("norm_q", "norm_k"):
                if (norm := getattr(attention, name)) is not None:
                    setattr(described, name, norm.weight.data_ptr())
                    described.eps_head = norm.eps
            described.scale, described.slot_of_cache = attention.scale, order[attention.index]
        if (mlp := layer.mlp) is not None:
            for name in ("gate", "up", "down"):
                setattr(described, name, getattr(mlp, name).described())
            described.activation = mlp.activation
        return described

    def __call__(
        self,
        hidden: Tensor,
        rotations: Mapping[str, Rotation],
        visible: Mapping[str, Tensor | None],
        view: CacheWindow,
    ) -> Tensor:
        """Return the (B, N, C) states after the layers, and write the new keys and values to the cache.

        See `path.Graph`; the arguments are those of `compiled.CompiledLayers`.
        """
        rows, tokens, width = hidden.shape
        out = hidden.to(torch.float32).clone(memory_format=torch.contiguous_format)
        kept: list[Tensor] = [out]  # whatever the call points to
        kinds, span = (_CKind * len(self.kinds))(), 0
        for at, kind in enumerate(self.kinds):
            both = [part.expand(rows, -1, -1).contiguous() for part in rotations[kind]]
            kinds[at].cosines, kinds[at].sines = (part.data_ptr() for part in both)
            kept += both
            if (seen := visible[kind]) is not None:
                seen = seen.expand(rows, -1, -1).contiguous()
                kinds[at].visible, span = seen.data_ptr(), seen.shape[2]
                kept.append(seen)
        starts = (c_int64 * rows)(*view.starts)
        keys, values = places = view.places(self._like)  # of every layer in every row
        assert places.dtype == np.int64 and places.flags["C_CONTIGUOUS"]
        call = _CCall(out.data_ptr(), rows, tokens, width, *self._sizes, kept[1].shape[2], span, len(self.kinds), kinds)
        call.starts, call.keys, call.values = ctypes.addressof(starts), keys.ctypes.data, values.ctypes.data
        call.slots = view.slots
        library().selfdraft_layers(self._described, c_int64(len(self._layers)), byref(call), c_int64(self._threads))
        return out


class NativeNorm(nn.Module):
    """A root-mean-square norm; torch's takes longer than a whole layer's."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self._norm = norm

    def forward(self, states: Tensor) -> Tensor:
        """Return (…, C) from (…, C)."""
        states = states.to(torch.float32).contiguous()
        out, width = torch.empty_like(states), states.shape[-1]
        library().selfdraft_norm(
            c_void_p(states.data_ptr()),
            c_void_p(self._norm.weight.data_ptr()),
            c_float(self._norm.eps),
            c_int64(states.numel() // width),
            c_int64(width),
            c_void_p(out.data_ptr()),
        )
        return out


class NativeProduct:
    """Multiplies by one matrix."""

    def __init__(self, matrix: Stored, threads: int) -> None:
        self._matrix, self._threads, self._described = matrix, threads, matrix.described()

    def __call__(self, states: Tensor) -> Tensor:
        """Return (…, O) of (…, I) states."""
        states = states.to(torch.float32).contiguous()
        out = torch.empty(*states.shape[:-1], self._matrix.outputs)
        library().selfdraft_product(
            byref(self._described),
            c_void_p(states.data_ptr()),
            c_int64(states[..., 0].numel()),
            c_void_p(out.data_ptr()),
            c_int64(self._threads),
        )
        return out
