"""Tiny models: every family builds, a seed gives one model, and texts are varied enough to compare."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.models.loading.tiny import FAMILIES, WINDOW, tiny_model, tiny_tokenizer

PROMPT = torch.tensor([[5, 17, 3, 60, 42, 9]])


def greedy(model: torch.nn.Module, length: int = 24) -> list[int]:
    return model.generate(PROMPT, max_new_tokens=length, do_sample=False)[0, PROMPT.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_varies_and_has_clear_margins(family: str) -> None:
    model = tiny_model(family)
    assert not model.training
    text = greedy(model)
    assert len(text) == 24  # nothing ends it early
    assert len(set(text)) >= 8
    best, second = model(torch.tensor([text])).logits[0].topk(2).values.unbind(-1)
    assert (best - second).median() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_seeds_give_equal_models(family: str) -> None:
    state = torch.get_rng_state()
    first, second, other = tiny_model(family), tiny_model(family), tiny_model(family, seed=1)
    rounded = tiny_model(family, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))
        assert torch.equal(parameter.bfloat16(), rounded.get_parameter(name))
    assert rounded.dtype == torch.bfloat16
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_and_loaded_tiny_model_is_equal(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.dtype == torch.bfloat16
    assert torch.equal(model(PROMPT).logits, again(PROMPT).logits)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_sliding_windows_are_shorter_than_the_texts_of_tests(family: str) -> None:
    """With a single layer, the first token has no effect once the window has passed it."""
    model = tiny_model(family, layers=1)
    text = torch.arange(1, 2 * WINDOW + 1)[None]
    changed = text.clone()
    changed[0, 0] = 90
    same = torch.isclose(model(text).logits, model(changed).logits, atol=1e-5).all(-1)[0]
    assert not same[: WINDOW - 1].any()
    assert same[WINDOW:].all()


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_gemma_alternates_its_layer_types(family: str) -> None:
    assert tiny_model(family).config.layer_types == ["sliding_attention", "full_attention"] * 2


def test_sizes_and_overrides_are_used() -> None:
    model = tiny_model("qwen3", layers=2, hidden=64, heads=8, kv_heads=4, vocab_size=50, tie_word_embeddings=True)
    assert len(model.model.layers) == 2
    assert model.get_input_embeddings().weight.shape == (50, 64)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.num_key_value_heads == 4


def test_decoding_stops_at_the_given_end_token() -> None:
    text = greedy(tiny_model())
    stopped = greedy(tiny_model(eos_token_id=text[5]))
    assert stopped == text[: text.index(text[5]) + 1]


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'gpt9'.*llama, qwen2, .*olmo2"):
        tiny_model("gpt9")


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="hidden=33"):
        tiny_model(hidden=33)


def test_any_text_survives_encoding_and_decoding() -> None:
    for text in [
        "",
        "plain text",
        " both ends ",
        "don't ,  a ?",
        "naïve 日本語 🤗\u200d",
        "\x00\x7f\t\r\n",
        "1 + 1 = 2\n\n    x",
    ]:
        with naming(text):
            tokenizer = tiny_tokenizer()
            ids = tokenizer(text).input_ids
            assert tokenizer.decode(ids) == text
            assert len(ids) == len(text.encode())


def test_every_character_survives_encoding_and_decoding() -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_chat_runs_end_to_end(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    shown = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(prompt["input_ids"][0]) == shown
    assert (prompt["input_ids"] == tokenizer.eos_token_id).sum() == 2  # special tokens are one id each
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert isinstance(tokenizer.decode(output[0], skip_special_tokens=True), str)
