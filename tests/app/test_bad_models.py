"""A model folder that cannot be used gives one line that names it and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, RwkvConfig, RwkvForCausalLM, T5Config, T5ForConditionalGeneration

from command_line import SMOKE, ErrorLine, run_here
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer


def hf(path: Path | str) -> list[str]:
    return ["model=hf", f"model.path='{path}'", "model.dtype=float32"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A sound checkpoint, to be damaged."""
    folder = tmp_path / "checkpoint"
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer), max_positions=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_folder_that_is_missing_is_named(error_line: ErrorLine, tmp_path: Path) -> None:
    assert f"model.path={tmp_path}/nowhere: no such folder" in error_line(*hf(tmp_path / "nowhere"))


def test_a_folder_without_config_json_is_refused(error_line: ErrorLine, saved: Path) -> None:
    (saved / "config.json").unlink()
    assert f"model.path={saved}: the folder has no config.json" in error_line(*hf(saved))


def test_unreadable_weights_name_the_folder(error_line: ErrorLine, saved: Path) -> None:
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"no safetensors" * 9, whole[: len(whole) // 2], b"", None):
        weights.unlink()
        if damaged is not None:
            weights.write_bytes(damaged)
        assert f"model.path={saved}: cannot be loaded as a causal language model (" in error_line(*hf(saved))
        weights.touch()


def test_an_unusable_config_json_is_refused(error_line: ErrorLine, saved: Path) -> None:
    for content in ("{", "[]", '{"model_type": "no_such_family"}', "{}"):
        (saved / "config.json").write_text(content)
        assert f"model.path={saved}: cannot be loaded as a causal language model (" in error_line(*hf(saved))


def test_weights_of_other_shapes_than_in_the_config_are_refused(error_line: ErrorLine, saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"hidden_size": 64, "head_dim": 16}))
    assert f"model.path={saved}: cannot be loaded as a causal language model (" in error_line(*hf(saved))


def test_weights_that_lack_a_matrix_are_refused(error_line: ErrorLine, saved: Path) -> None:
    """transformers fills the gaps with random numbers and only warns: what is measured would be another model."""
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    assert f"model.path={saved}: " in error_line(*hf(saved))


def test_a_folder_without_a_tokenizer_is_refused(error_line: ErrorLine, saved: Path) -> None:
    for path in saved.glob("tokenizer*"):
        path.unlink()
    assert f"model.path={saved}: " in error_line(*hf(saved))


def test_an_encoder_decoder_is_refused_by_name(error_line: ErrorLine, tmp_path: Path) -> None:
    config = T5Config(vocab_size=260, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    assert "model family 't5' is not supported: it is an encoder-decoder" in error_line(*hf(tmp_path / "t5"))


def test_an_unsupported_family_is_refused_by_name(error_line: ErrorLine, tmp_path: Path) -> None:
    config = RwkvConfig(vocab_size=260, hidden_size=16, num_hidden_layers=2)
    RwkvForCausalLM(config).save_pretrained(tmp_path / "rwkv")
    tiny_tokenizer().save_pretrained(tmp_path / "rwkv")
    said = error_line(*hf(tmp_path / "rwkv"))
    assert "model family 'rwkv' (RwkvForCausalLM) is not supported: its forward takes no cache" in said
    assert "Llama" in said


def test_an_undamaged_checkpoint_is_accepted(saved: Path, tmp_path: Path) -> None:
    """Or else the refusals above would prove nothing."""
    assert isinstance(AutoModelForCausalLM.from_pretrained(saved), torch.nn.Module)
    assert (
        run_here(tmp_path / "run", *SMOKE, *hf(saved), "dataset.limit=1", "decoding.max_new_tokens=4", "drafter=none")
        > 0
    )
