"""A model that was changed by its user and is not supported: the line names the change, not the family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.models.engines.choice import use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model

CPU = torch.device("cpu")


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def parametrized(model: PreTrainedModel, _: Path) -> nn.Module:
    parametrize.register_parametrization(model.model.layers[1].mlp.down_proj, "weight", Doubled())
    return model


def weight_norm(model: PreTrainedModel, _: Path) -> nn.Module:
    parametrizations.weight_norm(model.model.layers[0].self_attn.q_proj)
    return model


def compiled(model: PreTrainedModel, _: Path) -> nn.Module:
    model.model.layers[0] = torch.compile(model.model.layers[0])
    return model


def hooked(model: PreTrainedModel, _: Path) -> nn.Module:
    def double(module: nn.Module, args: tuple, output):
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    model.model.register_forward_hook(double)
    return model


def patched(model: PreTrainedModel, _: Path) -> nn.Module:
    stock = model.forward

    def forward(*args, **kwargs):
        output = stock(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    model.forward = forward
    return model


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (parametrized, "model.layers.1.mlp.down_proj is parametrized"),
        (weight_norm, "model.layers.0.self_attn.q_proj is parametrized"),
        (compiled, "model.layers.0 is compiled"),
        (hooked, "model has hooks; remove them"),
        (patched, "the model has a forward of its own"),
        (lambda model, _: nn.DataParallel(model), "it is wrapped in a DataParallel"),
    ],
)
def test_a_changed_model_is_refused_for_the_change_not_for_its_family(
    tmp_path: Path, change: Callable[[PreTrainedModel, Path], nn.Module], expected: str
) -> None:
    model = change(tiny_model(), tmp_path)
    with pytest.raises(UserError) as caught:
        Target(model)
    assert expected in str(caught.value)
    assert "family" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        lambda model, _: cpu_offload(model, execution_device=CPU),
        lambda model, folder: disk_offload(model, folder, execution_device=CPU),
    ],
)
def test_a_model_that_accelerate_has_placed_is_driven(
    tmp_path: Path, place: Callable[[PreTrainedModel, Path], PreTrainedModel]
) -> None:
    found = []
    for model in (tiny_model(), place(tiny_model(), tmp_path)):
        target = Target(model, packed=False)
        assert use_engine(target, "eager") == "eager"
        found += target.forward([0], [4], [TokenTree.chain([5, 6])])
    torch.testing.assert_close(*found)
    with pytest.raises(UserError, match="lie on several devices or a disk"):
        use_engine(target, "native")


def test_autocast_is_refused() -> None:
    model = tiny_model()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(UserError, match=r"torch\.autocast is on"):
        Target(model)
    Target(model)


def test_a_composite_model_is_driven_by_its_decoder() -> None:
    text = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = Gemma3Config(text_config={**text, "num_key_value_heads": 1, "vocab_size": 96}, vision_config=vision)
    model = Gemma3ForConditionalGeneration(config).eval()
    target, tokens = Target(model), torch.arange(12)[None]
    assert target.whole is not None and target.vocab_size == 96
    (ours,) = target.forward([0], [0], [TokenTree.chain(tokens[0, 1:])])
    torch.testing.assert_close(ours, model(input_ids=tokens).logits[0], rtol=1e-3, atol=1e-3)
