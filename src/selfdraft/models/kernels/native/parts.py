"""Read from a stock layer what our C++ needs: its matrices, norms and sizes.

These functions go by the names and forms of modules, so that new families of the Llama kind work without a list. They
may be wrong about a module that only looks like one, so `engine` then compares the results with the module's own
forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from selfdraft.models.kernels.native.stored import Stored

NORMS = ("input_layernorm", "post_attention_layernorm")  # before attention, and before the MLP
ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1, "gelu_tanh": 1}  # as in layers.cpp
Store = Callable[[nn.Module], Stored]


class OtherKind(Exception):
    """A module is not of the Llama kind; the message says what differs."""


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm: (n,) weight."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Attention:
    """An attention sublayer. `scale`: the factor of the scores. `index`: its place in the cache."""

    q: Stored
    k: Stored
    v: Stored
    o: Stored
    norm_q: Norm | None
    norm_k: Norm | None
    heads: int
    groups: int
    size: int
    scale: float
    index: int


@dataclass(frozen=True)
class MLP:
    """A gated MLP. `activation`: the number by which layers.cpp knows the function."""

    gate: Stored
    up: Stored
    down: Stored
    activation: int


def norm_of(module: nn.Module) -> Norm:
    """Read a norm.

    Raises:
        OtherKind: as all functions here.
    """
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, Tensor) or not isinstance(eps, float):
        raise OtherKind(f"{type(module).__name__} is another norm")
    return Norm(weight.detach().float().contiguous(), eps)


def attention_of(module: nn.Module, store: Store) -> Attention:
    """Read an attention sublayer."""
    projections = _children(module, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"})
    stock: Any = module
    q, k, v, o = (store(projections[name]) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    size = int(stock.head_dim)
    norm_q, norm_k = (norm_of(projections[name]) if name in projections else None for name in ("q_norm", "k_norm"))
    if any(norm is not None and len(norm.weight) != size for norm in (norm_q, norm_k)):
        raise OtherKind("heads are normalised together")
    heads, groups, scale, index = q.outputs // size, k.outputs // size, float(stock.scaling), int(stock.layer_idx)
    return Attention(q, k, v, o, norm_q, norm_k, heads, groups, size, scale, index)


def mlp_of(module: nn.Module, store: Store) -> MLP:
    """Read an MLP."""
    parts = _children(module, {"gate_proj", "up_proj", "down_proj"}, {"act_fn"})
    config: Any = getattr(module, "config", None)
    name = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if name not in ACTIVATIONS:
        raise OtherKind(f"its MLPs have the activation {name}")
    return MLP(store(parts["gate_proj"]), store(parts["up_proj"]), store(parts["down_proj"]), ACTIVATIONS[name])


def _children(module: nn.Module, needed: set[str], allowed: set[str]) -> dict[str, nn.Module]:
    found = dict(module.named_children())
    if not needed <= set(found) <= needed | allowed:
        raise OtherKind(f"{type(module).__name__} consists of {', '.join(sorted(found)) or 'other parts'}")
    return found
