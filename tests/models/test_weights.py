"""Weights in fewer bits: which values there are, that they are kept, and that a rounded model is one like others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lossless import LOSSLESS
from made import made
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import configured
from selfdraft.models.engines.choice import compile_layers, use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.weights import GROUP, encoded, exactly_encoded, round_weights, rounded
from selfdraft.models.loading.loading import load_embedded
from selfdraft.models.loading.tiny import tiny_model
from subjects import PROMPTS, stock_output, subject


def matrix(outputs: int = 6, groups: int = 3) -> torch.Tensor:
    return torch.randn(outputs, groups * GROUP, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("bits", "levels"), [(4, 16), (8, 255)])
def test_each_value_becomes_the_nearest_level_of_its_group(bits: int, levels: int) -> None:
    weight = matrix()
    values = encoded(weight, bits).values()
    for ours, theirs in zip(values.view(-1, GROUP), weight.view(-1, GROUP), strict=True):
        low, high = (-theirs.abs().max(), theirs.abs().max()) if bits == 8 else theirs.aminmax()
        step = float(high - low) / (levels - 1)
        assert float((ours - theirs).abs().max()) <= step / 2 * 1.0001
        places = (ours - low) / step
        torch.testing.assert_close(places, places.round(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_again_changes_nothing(bits: int) -> None:
    once = encoded(matrix(), bits).values()
    torch.testing.assert_close(encoded(once, bits).values(), once, rtol=0, atol=1e-6 * float(once.abs().max()))
    found = exactly_encoded(once, "int4")
    assert found is not None and found.bits == bits
    assert exactly_encoded(matrix(), "int4") is None  # it would lose its values
    assert exactly_encoded(once, "same") is None


@pytest.mark.parametrize("value", [0.0, 0.3, -0.7])
def test_a_group_of_one_value_keeps_it(value: float) -> None:
    weight = torch.full((2, GROUP), value)
    for bits in (4, 8):
        torch.testing.assert_close(encoded(weight, bits).values(), weight)


def test_a_matrix_without_whole_groups_is_left_as_it_is() -> None:
    linear = nn.Linear(GROUP + 1, 4)
    assert exactly_encoded(linear.weight, "int4") is None
    assert rounded(linear, 4) is linear or torch.equal(rounded(linear, 4).weight, linear.weight)
    with pytest.raises(ValueError, match="33 inputs do not make groups of 32"):
        encoded(linear.weight, 4)


def test_a_light_copy_is_rounded_and_the_original_is_not() -> None:
    layer = tiny_model().model.layers[0]
    before = {name: p.clone() for name, p in layer.named_parameters()}
    small = rounded(layer, 4)
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())
    assert not torch.equal(small.mlp.up_proj.weight, layer.mlp.up_proj.weight)
    assert small.input_layernorm.weight is layer.input_layernorm.weight


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_the_target_of_rounded_weights_is_that_quantised_model(family: str, weights: str) -> None:
    """transformers' own generate on the rounded model is the reference; eager and compiled drafters write its text."""
    model, whole = tiny_model(family), tiny_model(family)
    round_weights(model, weights)
    assert not torch.equal(model.get_output_embeddings().weight, whole.get_output_embeddings().weight)
    expected = stock_output(model, PROMPTS[0], 16)
    eager, compiled = Target(model), Target(model)
    compile_layers(compiled, weights)
    for target in (eager, compiled):
        for name in ("none", "pool"):
            decoder = Decoder(target, made(target, LOSSLESS[name][0]), Stopping(frozenset(), 16))
            assert decoder.decode(PROMPTS[0]).output == expected, name


@pytest.mark.slow
def test_drafts_in_few_bits_are_right_now_and_wrong_then() -> None:
    """On a model whose best tokens lead by less than elsewhere in these tests."""
    it = subject("llama", seed=0, mild=False)
    offered = accepted = 0
    for bits in (4, 8):
        drafter = made(it.target, configured("low_bit", bits=bits, draft_length=3))
        answers = it.decode(drafter, 1, [0, 1])
        assert [g.output for g in answers] == it.expected[:2]
        levels = [level for g in answers for level in g.counts.acceptance_by_depth()]
        offered += sum(level["offered"] for level in levels)
        accepted += sum(level["accepted"] for level in levels)
    assert 0 < accepted < offered


@pytest.mark.slow
def test_the_engine_says_that_the_target_is_a_rounded_model() -> None:
    target = Target(tiny_model())
    said = "with int4 weights (the target is the model that was rounded to them)"
    assert use_engine(target, "eager", weights="int4") == f"eager {said}"
    assert use_engine(target, "compiled", weights="int4").startswith(f"compiled by OpenVINO {said}, in ")
    native = use_engine(Target(tiny_model()), "native", weights="int4")
    assert native.startswith("native: our C++ on ") and f" {said}, in " in native


def test_same_rounds_nothing() -> None:
    model, whole = tiny_model(), tiny_model()
    round_weights(model, "same")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True))


@pytest.mark.real
@pytest.mark.slow
def test_int4_keeps_the_very_values_of_the_embedded_model() -> None:
    """Its file has 4 bits a weight in the layers, and 8 in the head."""
    model = load_embedded("float32", torch.device("cpu")).model
    before = [p.clone() for p in model.parameters()]
    round_weights(model, "int4")
    for ours, theirs in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.detach().abs().max()))
    for layer in model.model.layers[::10]:
        codes = exactly_encoded(layer.mlp.up_proj.weight, "int4")
        assert codes is not None and codes.bits == 4
