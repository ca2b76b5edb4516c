"""Token ids of texts: boundaries, other tokens for the same text, and characters that are cut."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from selfdraft.models.loading.spelling import Speller
from selfdraft.models.loading.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def merging() -> Speller:
    """A tokenizer that writes `ab` and `abc` as one token each."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "ab", "abc", "<end>"])}
    backend = Tokenizer(BPE(vocabulary, merges=[("a", "b"), ("ab", "c")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Speller(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>"))


def ids(speller: Speller, *tokens: str) -> list[int]:
    return speller.tokenizer.convert_tokens_to_ids(list(tokens))


def test_an_answer_s_tokens_give_its_text_back() -> None:
    speller = Speller(tiny_tokenizer())
    prompt = speller.prompt("Grüße")
    spelt = speller.answer(prompt, "wörtlich <|im_end|>")
    assert (spelt.warning, spelt.is_cut) == ("", False)
    assert speller.text(spelt.ids) == "wörtlich <|im_end|>" and spelt.ids[-1] == speller.tokenizer.eos_token_id


def test_a_boundary_that_tokens_can_cross_is_a_guess(merging: Speller) -> None:
    assert merging.answer(ids(merging, "x"), "abc").warning == ""
    spelt = merging.answer(ids(merging, "x", "a"), "bc")  # together they are `abc`
    assert spelt.ids == ids(merging, "b", "c") and "where prompt and text meet" in spelt.warning


def test_a_text_is_written_with_the_token_that_the_model_prefers(merging: Speller) -> None:
    prompt, (a, b, c, ab) = ids(merging, "x"), ids(merging, "a", "b", "c", "ab")
    assert merging.answer(prompt, "abcab").ids == ids(merging, "abc", "ab")
    assert merging.respelt(prompt, "abcab", [], a) == [a, b, c, ab]
    assert merging.respelt(prompt, "abcab", [a, b, c], a) == [a, b, c, a, b]
    assert merging.respelt(prompt, "abcab", [], c) is None
    assert merging.respelt(prompt, "abcab", ids(merging, "abc", "ab"), a) is None  # nothing is left to write
    assert merging.respelt(prompt, "abc", [], ids(merging, "<end>")[0]) is None


def test_the_first_part_of_a_character_is_left_out() -> None:
    speller = Speller(tiny_tokenizer())
    cut = speller.text(speller.prompt("aé")[:-1])
    assert cut == "a\ufffd"
    spelt = speller.answer([5], cut)
    assert (spelt.ids, spelt.is_cut) == (speller.prompt("a"), True) and "within a character" in spelt.warning
