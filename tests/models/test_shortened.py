"""A model cut to its first layers computes what these layers compute, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

from selfdraft.models.families.anatomy import dissect
from selfdraft.models.families.shortened import enough_layers, random_first_layers, shortened
from selfdraft.models.loading.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_model_without_its_last_layers(family: str) -> None:
    model = tiny_model(family, layers=5)
    short = shortened(model, 2)
    ids = torch.tensor([[5, 17, 3, 60, 42, 8, 8, 9, 1, 2, 3]])
    with torch.inference_mode():
        last = short.base_model(ids, use_cache=False).last_hidden_state
        whole = model(ids, output_hidden_states=True, use_cache=False)
        expected = dissect(model).norm(whole.hidden_states[2])
    torch.testing.assert_close(last, expected)
    assert short.config.num_hidden_layers == 2 and model.config.num_hidden_layers == 5
    weights = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in short.parameters()} < weights
    with torch.inference_mode():
        assert torch.equal(model(ids, use_cache=False).logits, whole.logits)


def test_random_weights_have_the_same_shapes() -> None:
    with torch.device("meta"):
        outline = tiny_model("gemma2", layers=6)
    made = random_first_layers(outline, 3, torch.bfloat16, torch.device("cpu"))
    assert made.dtype == torch.bfloat16 and made.config.layer_types == outline.config.layer_types[:3]
    expected = {name: p.shape for name, p in outline.named_parameters() if ".layers." not in name}
    assert {name: p.shape for name, p in made.named_parameters() if ".layers." not in name} == expected


def test_enough_layers_have_one_of_each_type() -> None:
    config = tiny_model("gemma3_text", layers=8).config
    assert enough_layers(config) == 4
    config.layer_types = ["sliding_attention"] * 6 + ["full_attention"] * 2
    assert enough_layers(config) == 7
    assert enough_layers(tiny_model(layers=2).config) == 2
