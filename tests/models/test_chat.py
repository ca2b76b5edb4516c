"""From a conversation to token ids: with the model's chat template, or else text after text."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from selfdraft.core.errors import UserError
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.tiny import tiny_tokenizer

TURNS = [("user", "Who are you?"), ("assistant", "A model."), ("user", "Größe?")]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def base(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.chat_template = None
    return tokenizer


def test_a_template_marks_every_turn_and_ends_where_the_answer_begins(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = Chat(tokenizer).encode(TURNS)
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nA model.<|im_end|>\n"
        "<|im_start|>user\nGröße?<|im_end|>\n<|im_start|>assistant\n"
    )
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    assert (ids.count(start), ids.count(end)) == (4, 3)  # special tokens, not their letters
    assert type(ids) is list and all(type(token) is int for token in ids)


def test_a_later_turn_begins_with_the_ids_of_the_earlier_ones(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = Chat(tokenizer)
    first = chat.encode(TURNS[:1])
    assert chat.encode(TURNS)[: len(first)] == first


def test_without_a_template_the_texts_follow_each_other(base: PreTrainedTokenizerFast) -> None:
    chat = Chat(base)
    ids = chat.encode(TURNS)
    assert base.decode(ids) == "Who are you?\n\nA model.\n\nGröße?"
    assert chat.encode(TURNS[:1]) == base("Who are you?")["input_ids"]
    assert type(ids) is list


def test_decoding_drops_special_tokens_and_restores_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = Chat(tokenizer)
    text = "Größe: 5 µm\n\t<b>日本</b> ."
    assert chat.decode([*tokenizer(text)["input_ids"], tokenizer.eos_token_id]) == text
    assert chat.decode([]) == ""


def test_a_system_message_comes_first(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = Chat(tokenizer).encode([("system", "Be brief."), ("user", "Why?")])
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "leaves such"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('System role?') }}{% endif %}a", "System role?"),
    ],
)
def test_a_template_without_a_system_role_gives_one_clear_line(
    tokenizer: PreTrainedTokenizerFast, template: str, reason: str
) -> None:
    tokenizer.chat_template = template
    chat = Chat(tokenizer)
    chat.encode([("user", "Why?")])
    with pytest.raises(UserError, match=r"takes no system message: leave the system prompts out .*\(.*") as caught:
        chat.encode([("system", "Be brief."), ("user", "Why?")])
    assert reason in str(caught.value) and "\n" not in str(caught.value)
