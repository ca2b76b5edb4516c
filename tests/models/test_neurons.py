"""Sparse width: MLPs with only the neurons that a prompt uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from begun import CLOSE, LONG, SHORT, begin
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.neurons import most_active, neuron_statistics, require_gated_mlps, sliced_mlps
from selfdraft.models.sparse import sparse_path
from selfdraft.models.target import Target
from selfdraft.models.tiny import FAMILIES, tiny_model

GATED = [family for family in FAMILIES if family != "gpt_neox"]


def activations(model: PreTrainedModel, target: Target, text: list[int]) -> list[Tensor]:
    """Per layer (S, F): what the stock model's down projections get."""
    seen: list[Tensor] = []
    downs = [getattr(layer, target.anatomy.mlp_name).down_proj for layer in target.anatomy.layers]
    hooks = [down.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0][0])) for down in downs]
    with torch.inference_mode():
        model(torch.tensor([text]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", GATED)
def test_neurons_are_chosen_by_their_share_of_the_prompt_s_activations(family: str) -> None:
    model = tiny_model(family)
    target = Target(model)
    begin(target, SHORT)
    require_gated_mlps(target)
    ours = neuron_statistics(target, LONG)
    for mine, z in zip(ours, activations(model, target, LONG), strict=True):
        share = z.abs() / z.norm(dim=1, keepdim=True)
        torch.testing.assert_close(mine, share.norm(dim=0), rtol=1e-3, atol=1e-3)
        (kept,) = most_active([mine], 0.25)
        assert len(kept) == 16 and set(kept.tolist()) == set(mine.argsort()[-16:].tolist())
    assert target.cache.lengths == [len(SHORT) - 1]  # and the request's cache was left alone


@pytest.mark.parametrize("family", GATED)
def test_a_sliced_mlp_equals_the_stock_one_with_other_neurons_zeroed(family: str) -> None:
    model = tiny_model(family)
    target = Target(model)
    kept = most_active(neuron_statistics(target, LONG), 0.5)
    skip = SkipSet.of(4, [1], [2])
    path = sparse_path(target, skip, mlps=sliced_mlps(target, kept, skip))
    assert path.leading == 0
    begin(target, LONG)
    ours = target.draft_forward(path, [0], 0, [1], [TokenTree.chain([2, 3])])[0]
    with torch.inference_mode():
        past = model(torch.tensor([LONG[:-1]]), use_cache=True).past_key_values  # the prefix has seen whole MLPs
        anatomy = target.anatomy
        for layer, neurons in zip(anatomy.layers, kept, strict=True):
            only = torch.zeros(64).index_fill_(0, neurons, 1.0)
            getattr(layer, anatomy.mlp_name).down_proj.register_forward_pre_hook(lambda m, x, only=only: (x[0] * only,))
        attention, mlp = (
            getattr(anatomy.layers[1], anatomy.attention_name),
            getattr(anatomy.layers[2], anatomy.mlp_name),
        )
        attention.register_forward_hook(lambda m, x, out: (torch.zeros_like(out[0]), *out[1:]))
        mlp.register_forward_hook(lambda m, x, out: torch.zeros_like(out))
        expected = model(torch.tensor([[1, 2, 3]]), past_key_values=past).logits[0]
    torch.testing.assert_close(ours, expected, **CLOSE)
    whole = target.draft_forward(sparse_path(target, skip), [0], 0, [1], [TokenTree.chain([2, 3])])[0]
    assert (ours - whole).abs().max() > 0.01


def test_a_family_without_gated_mlps_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^drafter/path=width_skip: model family 'gpt_neox' has no gated MLPs"):
        require_gated_mlps(Target(tiny_model("gpt_neox")))
    model = tiny_model("llama")
    for layer in model.model.layers:  # as BitNet has: sized for all neurons
        layer.mlp.ffn_sub_norm = torch.nn.LayerNorm(layer.mlp.down_proj.in_features)
    with pytest.raises(UserError, match=r"model family 'llama' has no gated MLPs"):
        require_gated_mlps(Target(model))


def test_sliced_matrices_have_only_the_chosen_neurons() -> None:
    target = Target(tiny_model("llama"))
    sliced = sliced_mlps(target, [torch.tensor([1, 5, 6])] * 4, SkipSet.of(4, [], [3]))
    assert set(sliced) == {0, 1, 2}
    shapes = {
        name: tuple(m.weight.shape)
        for name, m in sliced[0].named_children()
        if isinstance(m, nn.Module) and hasattr(m, "weight")
    }
    assert shapes == {"gate_up": (6, 32), "down_proj": (32, 3)}
