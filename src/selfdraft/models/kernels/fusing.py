"""Run sublayers of the Llama kind with fewer and larger operations: joined projections, one rotation for q and k.

At one token per forward, a small model on a CPU spends half its time in operations that move a few kilobytes. Fused
modules compute the same with fewer of them. Each is tried on random input when a target is made. A module whose output
differs (another rotation, a norm of its own, …) stays stock. The fused modules are new objects around shared weights,
so the model itself is left as it is.

Shapes: B rows, N tokens, C hidden size, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import wraps
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selfdraft.models.cache.attention import NAME
from selfdraft.models.families.hooks import called_otherwise
from selfdraft.models.kernels.packing import PackedLinear, can_pack, unpacked

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")


class StockNorm(Protocol):
    """The attributes of a stock norm that fusing reads."""

    weight: Tensor
    variance_epsilon: float


class StockMLP(Protocol):
    """The attributes of a stock MLP that fusing reads, see `GATED`."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module


class StockAttention(Protocol):
    """The attributes of a stock attention sublayer that fusing reads."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    config: Any
    layer_idx: int
    scaling: float
    head_dim: int
    num_key_value_groups: int


class LayerCache(Protocol):
    """The method that attention calls on a cache."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, /) -> tuple[Tensor, Tensor]:
        """Write a layer's new (B, G, N, D) keys and values; return those of all slots, (B, G, K, D)."""
        ...


class FusedNorm(nn.Module):
    """Root-mean-square norm in one call."""

    def __init__(self, stock: StockNorm) -> None:
        super().__init__()
        self.weight, self.eps = stock.weight, stock.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C) from (…, C)."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class FusedMLP(nn.Module):
    """A gated MLP whose gate and up projections are one product."""

    def __init__(self, stock: StockMLP) -> None:
        super().__init__()
        self.gate_up = PackedLinear(stock.gate_proj, stock.up_proj)
        self.down_proj, self.act_fn = PackedLinear(stock.down_proj), stock.act_fn

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, C) from (B, N, C)."""
        gate, up = self.gate_up.parts(x)
        return self.down_proj(self.act_fn(gate) * up)


class FusedAttention(nn.Module):
    """Attention whose q, k and v are one product, and whose q and k are rotated together."""

    def __init__(self, stock: StockAttention) -> None:
        super().__init__()
        self.qkv = PackedLinear(*_qkv(stock))
        self.o_proj = PackedLinear(stock.o_proj)
        self.config = stock.config  # names the attention function, as in stock modules
        self.layer_idx, self.scaling, self.size = stock.layer_idx, stock.scaling, stock.head_dim
        self.heads = stock.q_proj.out_features // self.size
        self.rotated = self.heads + stock.k_proj.out_features // self.size
        self.num_key_value_groups = stock.num_key_value_groups
        half = torch.ones(self.size // 2, dtype=stock.q_proj.weight.dtype)
        self.sign = torch.cat([-half, half])  # rotates halves by a roll and this sign, without slices and a negation

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: LayerCache,
        **others: object,
    ) -> tuple[Tensor, None]:
        """Return (B, N, C) from (B, N, C), and no attention weights, as stock attention does."""
        batch, width, _ = hidden_states.shape
        heads = self.qkv(hidden_states).view(batch, width, -1, self.size).transpose(1, 2)
        both, value = heads[:, : self.rotated], heads[:, self.rotated :]
        cos, sin = position_embeddings
        both = both * cos[:, None] + both.roll(self.size // 2, -1) * (sin * self.sign)[:, None]
        query, key = both[:, : self.heads], both[:, self.heads :]
        key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling)
        return self.o_proj(out.view(batch, width, -1)), None


def stays_stock(fuse: Callable[..., nn.Module | None]) -> Callable[..., nn.Module | None]:
    """Make a function return None if it raises anything: the module is then of another kind and stays stock."""

    @wraps(fuse)
    def attempt(stock: nn.Module, **options: object) -> nn.Module | None:
        try:
            return fuse(stock, **options)
        except Exception:
            return None

    return attempt


def fast_module(_: str, module: nn.Module, rotated: Set[int] | None = None) -> nn.Module | None:
    """Return the fused or packed form of a module on a CPU, or None: a `Swap` for `light_copy`.

    Args:
        rotated: see `fused_attention`.
    """
    device = next((p.device for p in module.parameters()), None)
    if device is None or device.type != "cpu" or called_otherwise(module):
        return None
    if can_pack(module):
        return PackedLinear(cast("nn.Linear", module))
    return fused_attention(module, rotated=rotated) or fused_mlp(module) or fused_norm(module)


@stays_stock
def fused_norm(stock: nn.Module) -> nn.Module | None:
    """Return the fused form of a norm, or None if it has none."""
    if not hasattr(stock, "variance_epsilon") or getattr(stock, "weight", None) is None:
        return None
    norm = cast("StockNorm", stock)
    fused = FusedNorm(norm)
    x = _random(norm.weight, 3, *norm.weight.shape)
    return fused if _agree(fused, stock, lambda norm: norm(x)) else None


@stays_stock
def fused_mlp(stock: nn.Module) -> nn.Module | None:
    """Return the fused form of an MLP, or None if it has none."""
    parts = dict(stock.named_children())
    if set(parts) != set(GATED) or not can_pack(*(parts[name] for name in GATED[:3])):
        return None
    mlp = cast("StockMLP", stock)
    x = _random(mlp.gate_proj.weight, 1, 3, mlp.gate_proj.in_features)
    fused = FusedMLP(mlp)
    return fused if _agree(fused, stock, lambda mlp: mlp(x)) else None


@stays_stock
def fused_attention(stock: nn.Module, *, rotated: Set[int] | None = None) -> nn.Module | None:
    """Return the fused form of an attention sublayer, or None if it has none.

    Args:
        stock: must have `grouped_sdpa` as its attention function.
        rotated: how many numbers of a head the model rotates, one entry for each way it does; None for all of them.
    """
    attention = cast("StockAttention", stock)
    if rotated is not None and rotated != {attention.head_dim}:
        return None  # the trial below rotates whole heads and would not notice
    parts = dict(stock.named_children())
    if set(parts) != set(PROJECTIONS) or not (can_pack(*_qkv(attention)) and can_pack(attention.o_proj)):
        return None
    if getattr(getattr(stock, "config", None), "_attn_implementation", None) != NAME:
        return None  # it caps its scores, which a trial with small scores would not notice
    weight, width = attention.q_proj.weight, 3
    x = _random(weight, 1, width, attention.q_proj.in_features)
    angles = _random(weight, 1, width, attention.head_dim // 2).repeat(1, 1, 2)
    rotation = angles.cos(), angles.sin()
    mask = _random(weight, 1, 1, attention.num_key_value_groups * width, width)

    def run(module: nn.Module) -> Tensor:
        return module(hidden_states=x, position_embeddings=rotation, attention_mask=mask, past_key_values=_NoCache())[0]

    fused = FusedAttention(attention)
    return fused if _agree(fused, stock, run) else None


def _qkv(attention: StockAttention) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return attention.q_proj, attention.k_proj, attention.v_proj


class _NoCache:
    """The cache that attention gets in a trial: it sees only the keys of the same forward."""

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return keys, values


@torch.inference_mode()
def _agree(fused: nn.Module, stock: nn.Module, run: Callable[[nn.Module], Tensor]) -> bool:
    """Whether both modules return the same, up to rounding."""
    with unpacked():
        theirs, ours = run(stock).float(), run(fused).float()
    tolerance = 1e-4 if next(stock.parameters()).dtype == torch.float32 else 3e-2
    return bool((theirs - ours).abs().max() <= tolerance * theirs.abs().max())


def _random(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)
