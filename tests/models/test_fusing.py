"""Fused modules give the results of the stock ones; modules of another kind stay stock."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.fusing import FusedAttention, FusedMLP, FusedNorm, fused_attention, fused_mlp, fused_norm
from selfdraft.models.kernels.packing import packable
from selfdraft.models.loading.tiny import FAMILIES, tiny_model

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def kinds(family: str) -> set[type]:
    target = Target(tiny_model(family))
    modules = {type(part) for layer in target.full.layers for part in layer.modules()}
    return modules & {FusedAttention, FusedMLP, FusedNorm}


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_of_the_llama_kind_are_fused_in_every_family(family: str) -> None:
    expected = {
        "llama": {FusedAttention, FusedMLP, FusedNorm},
        "qwen2": {FusedAttention, FusedMLP, FusedNorm},
        "mistral": {FusedAttention, FusedMLP, FusedNorm},
        "qwen3": {FusedMLP, FusedNorm},  # norms q and k
        "olmo2": {FusedMLP, FusedNorm},
        "phi3": {FusedNorm},  # has its projections joined by itself
        "gemma2": {FusedMLP},  # caps its scores, and its norms count from one
        "gemma3_text": {FusedMLP},
        "gpt_neox": set(),
    }
    assert kinds(family) == expected[family]


def test_unpacked_nothing_is_fused() -> None:
    target = Target(tiny_model("llama"), packed=False)
    assert not any(isinstance(part, FusedMLP) for layer in target.full.layers for part in layer.modules())


def layer_of(family: str) -> nn.Module:
    """A layer with our attention function, every module stock."""
    return copy.copy(Target(tiny_model(family), packed=False).full.layers[1])


class Doubled(nn.Module):
    """A module with the attributes of a norm and another forward."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = stock.weight, stock.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_a_similar_module_with_another_forward_stays_stock() -> None:
    layer = layer_of("llama")
    assert fused_norm(layer.input_layernorm) is not None
    assert fused_norm(Doubled(layer.input_layernorm)) is None

    odd_mlp = copy.copy(layer.mlp)
    odd_mlp.forward = lambda x: layer.mlp.up_proj(x)[..., : x.shape[-1]]
    assert fused_mlp(layer.mlp) is not None
    assert fused_mlp(odd_mlp) is None

    assert fused_attention(layer.self_attn, rotated={8}) is not None
    assert fused_attention(layer.self_attn, rotated={4}) is None  # a part of every head
    assert fused_attention(layer.self_attn, rotated={4, 8}) is None

    nameless = copy.copy(layer.self_attn)
    del nameless.scaling  # which the fused module reads as it is made
    assert fused_attention(nameless) is None

    odd_attention = copy.copy(layer.self_attn)
    odd_attention.scaling = layer.self_attn.scaling
    odd_attention.forward = lambda hidden_states, **_: (hidden_states, None)
    assert fused_attention(layer.self_attn) is not None
    assert fused_attention(odd_attention) is None


@pytest.mark.parametrize("dtype", filter(packable, [torch.float32, torch.bfloat16]), ids=str)
@pytest.mark.parametrize("height", [1, 3, 4, 16])
def test_a_fused_mlp_and_norm_equal_the_stock_ones(height: int, dtype: torch.dtype) -> None:
    layer = layer_of("llama").to(dtype)
    x = torch.randn(1, height, 32, generator=torch.Generator().manual_seed(height)).to(dtype)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    torch.testing.assert_close(FusedMLP(layer.mlp)(x), layer.mlp(x), **close)
    torch.testing.assert_close(FusedNorm(layer.input_layernorm)(x), layer.input_layernorm(x), **close)
