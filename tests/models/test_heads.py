"""Output heads of every kind: tied and untied, in another dtype, and vocabularies larger than the tokenizer's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from command_line import SMOKE, said_by
from made import made
from selfdraft.core.errors import UserError
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer
from subjects import LENGTH, PROMPTS, stock_output

DRAFTERS = ("none", "pool", "jacobi", "layer_skip")


def assert_lossless(model: PreTrainedModel) -> None:
    expected = [stock_output(model, prompt) for prompt in PROMPTS]
    for packed in (False, True):
        target = Target(model, packed=packed)
        for name in DRAFTERS:
            decoder = Decoder(target, made(target, configured(name)), Stopping(frozenset(), LENGTH))
            assert [list(decoder.decode(prompt).output) for prompt in PROMPTS] == expected, (packed, name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_tied_and_untied_heads(family: str, tied: bool) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shared is tied
    assert_lossless(model)


class Widening(nn.Linear):
    """A head that multiplies in its own dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def with_head(model: PreTrainedModel, kind: type[nn.Linear]) -> PreTrainedModel:
    old = model.get_output_embeddings().weight
    head = kind(old.shape[1], old.shape[0], bias=False, dtype=torch.float64)
    head.weight.data = old.detach().double()
    model.set_output_embeddings(head.eval())
    return model


def test_a_head_that_multiplies_in_another_dtype_is_used_as_it_is() -> None:
    assert_lossless(with_head(tiny_model(), Widening))


def test_a_head_that_cannot_multiply_the_states_is_refused_for_its_dtype() -> None:
    with pytest.raises(UserError, match="its parameters are in float32 and float64") as refused:
        Target(with_head(tiny_model(), nn.Linear))
    assert "\n" not in str(refused.value)


def test_ids_that_the_tokenizer_lacks_may_be_written(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer) + 500, max_positions=4096).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = ("model=hf", f"model.path='{tmp_path}/model'", "model.dtype=float32", "logger=none")
    ask = ("task=generate", "prompt=Hello", "decoding.max_new_tokens=24", "drafter=pool")
    assert "output: exact" in said_by(tmp_path / "run", *SMOKE, *model, *ask)
