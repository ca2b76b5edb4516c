"""Loading of Hugging Face folders: weights, ties, dtype, tokenizer and end-of-sequence ids."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from selfdraft.core.errors import UserError
from selfdraft.models.families.quiet import quiet_transformers
from selfdraft.models.loading.loading import DTYPES, load_pretrained, load_random, load_tiny
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


def save(folder: Path, *, eos: int | list[int] | None = None, **overrides: object) -> PreTrainedModel:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), **overrides)
    if eos is not None:
        model.generation_config = GenerationConfig(eos_token_id=eos)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    return model(torch.tensor([[5, 17, 3, 60]]), use_cache=False).logits


def mapped_from(model: PreTrainedModel, folder: Path) -> list[str]:
    """Parameters that are memory-mapped from a file in `folder`, not in the process's own memory."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            begin, end = re.match(r"(\w+)-(\w+)", line).groups()
            ranges.append((int(begin, 16), int(end, 16)))
    return [
        name
        for name, parameter in model.named_parameters()
        if any(begin <= parameter.data_ptr() < end for begin, end in ranges)
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_with_equal_weights_and_ties(tmp_path: Path, tied: bool) -> None:
    saved = save(tmp_path, tie_word_embeddings=tied)
    loaded = load_pretrained(str(tmp_path), "float32", CPU).model
    assert not loaded.training
    torch.testing.assert_close(logits(loaded), logits(saved), rtol=0, atol=0)
    head, embedding = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert (head is embedding) == tied
    assert (head.data_ptr() == embedding.data_ptr()) == tied


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists mappings")
@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_are_not_memory_mapped(tmp_path: Path, tied: bool) -> None:
    """Memory-mapped, the first forwards would wait for the disk, and be timed."""
    save(tmp_path, tie_word_embeddings=tied)
    loaded = load_pretrained(str(tmp_path), "float32", CPU)
    assert mapped_from(loaded.model, tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists mappings")
def test_weights_that_are_left_in_their_file_can_be_changed_without_it(tmp_path: Path) -> None:
    """By training as by hand: a change makes a private copy."""
    save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    loaded, copied = (load_pretrained(str(tmp_path), "float32", CPU, mapped=mapped).model for mapped in (True, False))
    assert len(mapped_from(loaded, tmp_path)) == len(list(loaded.parameters()))
    assert torch.equal(logits(loaded), logits(copied))
    for model in (loaded, copied):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.tensor([[5, 17, 3, 60]]), use_cache=False).logits.square().mean().backward()
        optimizer.step()
        model.lm_head.weight.data.mul_(2)
    assert torch.equal(logits(loaded), logits(copied))
    assert (tmp_path / "model.safetensors").read_bytes() == whole
    again = load_pretrained(str(tmp_path), "float32", CPU, mapped=True).model
    assert not torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_have_the_requested_dtype(tmp_path: Path, dtype: str) -> None:
    save(tmp_path)
    loaded = load_pretrained(str(tmp_path), dtype, CPU).model
    assert {parameter.dtype for parameter in loaded.parameters()} == {DTYPES[dtype]} == {loaded.dtype}


@pytest.mark.parametrize(("eos", "expected"), [(None, set()), (3, {3}), ([3, 60], {3, 60})])
def test_all_end_of_sequence_ids_are_used(tmp_path: Path, eos: int | list[int] | None, expected: set[int]) -> None:
    save(tmp_path, eos=eos)
    end_of_turn = tiny_tokenizer().eos_token_id
    assert load_pretrained(str(tmp_path), "float32", CPU).eos == expected | {end_of_turn}


def test_without_generation_config_the_model_config_is_used(tmp_path: Path) -> None:
    save(tmp_path, eos_token_id=7)
    (tmp_path / "generation_config.json").unlink()
    assert load_pretrained(str(tmp_path), "float32", CPU).eos == {7, tiny_tokenizer().eos_token_id}


def test_the_tokenizer_of_the_folder_is_loaded(tmp_path: Path) -> None:
    save(tmp_path)
    tokenizer = load_pretrained(str(tmp_path), "float32", CPU).tokenizer
    assert tokenizer("héllo")["input_ids"] == tiny_tokenizer()("héllo")["input_ids"]
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


def test_a_home_folder_may_be_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "m")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_pretrained("~/m", "float32", CPU).model.config.model_type == "llama"


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "~/none", "a/b/c"])
def test_a_path_that_can_only_be_a_folder_is_not_looked_up_on_the_hub(path: str) -> None:
    with pytest.raises(UserError, match=f"model.path={re.escape(path)}: no such folder"):
        load_pretrained(path, "float32", CPU)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("~no-such-user/m", "there is no home folder ~no-such-user"), ("/" + "a" * 300, "cannot be loaded .*too long")],
    ids=["home", "length"],
)
def test_an_impossible_path_gives_one_clear_line(path: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.path={path}: {reason}") as caught:
        load_pretrained(path, "float32", CPU)
    assert "\n" not in str(caught.value)


def test_an_unavailable_hub_id_gives_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^model\.path=selfdraft/no-such-model: cannot be loaded.*\)$") as caught:
        load_pretrained("selfdraft/no-such-model", "float32", CPU)
    assert "\n" not in str(caught.value)


def test_loading_is_silent_and_restores_the_verbosity_of_transformers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path)
    capfd.readouterr()
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    load_pretrained(str(tmp_path), "float32", CPU)
    assert capfd.readouterr() == ("", "")
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == before
    with pytest.raises(UserError):
        load_pretrained(str(tmp_path / "none"), "float32", CPU)
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == before


def test_the_tiny_model_fits_its_tokenizer_and_stops_at_the_end_of_a_turn() -> None:
    loaded = load_tiny("qwen3", 3, "bfloat16", CPU)
    assert loaded.model.config.vocab_size == len(loaded.tokenizer)
    assert (loaded.model.config.model_type, loaded.model.dtype) == ("qwen3", torch.bfloat16)
    assert loaded.eos == {loaded.tokenizer.eos_token_id}
    assert not torch.equal(logits(loaded.model), logits(load_tiny("qwen3", 4, "bfloat16", CPU).model))


def test_a_shape_is_loaded_as_a_model_with_random_weights(tmp_path: Path) -> None:
    save(tmp_path, layers=3)
    (tmp_path / "model.safetensors").unlink()
    state = torch.random.get_rng_state()
    one, same, other = (load_random(str(tmp_path), seed, "bfloat16", CPU) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (one.model.config.num_hidden_layers, one.model.dtype, one.eos) == (3, torch.bfloat16, frozenset())
    assert not one.model.training and one.model.config.vocab_size == len(one.tokenizer)
    assert torch.equal(logits(one.model), logits(same.model))
    assert not torch.equal(logits(one.model), logits(other.model))


def test_a_shape_with_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    tiny_model(vocab_size=64).config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="vocab_size=64, but bytes need 259"):
        load_random(str(tmp_path), 0, "float32", CPU)


def test_the_client_of_the_hub_is_silent_while_a_model_loads() -> None:
    before = hub_logging.get_verbosity()
    with pytest.raises(ValueError, match="planted"), quiet_transformers():
        assert hub_logging.get_verbosity() == hub_logging.ERROR
        raise ValueError("planted")
    assert hub_logging.get_verbosity() == before
