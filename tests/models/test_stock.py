"""transformers' own generate as a reference: the same text, and tokens counted like ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from transformers import GenerationConfig

from made import made
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.none import NoDrafter
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.loading import LoadedModel
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer
from selfdraft.models.reference.stock import REFERENCES, StockGenerate

GREEDY, LOOKUP = REFERENCES
PROMPT = [5, 17, 3, 60, 44, 9, 5, 17, 3]
PARROT = [5] * 20  # what the tied, random Gemma goes on with for ever


def loaded(eos: frozenset[int] = frozenset(), **arguments: object) -> LoadedModel:
    return LoadedModel(tiny_model(**arguments), tiny_tokenizer(), eos)


def parrot() -> LoadedModel:
    return loaded(family="gemma2", tie_word_embeddings=True)


def ours(model: LoadedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    target = Target(model.model)
    decoder = Decoder(target, made(target, NoDrafter.Config()), Stopping(model.eos, max_new_tokens))
    return decoder.decode(prompt).output


@contextmanager
def forwards_of(model: LoadedModel) -> Iterator[list[int]]:
    """How many tokens each forward of the stock model was given."""
    widths: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield widths
    finally:
        hook.remove()


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("max_new_tokens", [1, 2, 30])
def test_a_reference_gives_the_same_text_as_our_decoding(name: str, max_new_tokens: int) -> None:
    model = loaded()
    output = StockGenerate(model, name, max_new_tokens).decode(PROMPT).output
    assert len(output) == max_new_tokens
    assert output == ours(model, PROMPT, max_new_tokens)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_output_ends_with_the_end_of_sequence(name: str) -> None:
    free = StockGenerate(loaded(), name, 30).decode(PROMPT).output
    ends = frozenset({free[11], free[17]})
    stopped = loaded(eos=ends)
    first = next(i for i, token in enumerate(free) if token in ends)
    output = StockGenerate(stopped, name, 30).decode(PROMPT).output
    assert output == free[: first + 1] == ours(stopped, PROMPT, 30)


def test_greedy_decoding_time_excludes_the_token_of_the_prefill() -> None:
    model = loaded()
    with forwards_of(model) as widths:
        done = StockGenerate(model, GREEDY, 30).decode(PROMPT)
    assert widths == [len(PROMPT)] + [1] * 29
    assert done.decoded == 29
    assert done.decode_s > 0


def test_prompt_lookup_time_excludes_the_tokens_of_its_first_forward() -> None:
    """That one verifies a draft as well: up to eleven tokens come with the prefill, and are not decoded."""
    model = parrot()
    with forwards_of(model) as widths:
        done = StockGenerate(model, LOOKUP, 30).decode(PARROT)
    assert done.output == [5] * 30
    assert widths == [20 + 10, 11, 11]  # so: 11 tokens with the prefill, 11, and the last 8
    assert done.decoded == 19


def test_prompt_lookup_without_matches_counts_like_greedy() -> None:
    model = loaded()
    prompt = [1, 2, 3, 4, 5, 6]
    with forwards_of(model) as widths:
        done = StockGenerate(model, LOOKUP, 30).decode(prompt)
    assert widths[0] >= len(prompt)
    assert done.decoded == 29


HABITS = [
    {"repetition_penalty": 1.7},
    {"do_sample": True, "temperature": 0.3, "top_k": 5, "top_p": 0.8},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 18},
    {"suppress_tokens": list(range(1, 96, 2))},
]


@pytest.mark.parametrize("name", REFERENCES)
def test_generation_config_does_not_change_greedy_decoding(name: str) -> None:
    """Real checkpoints have such settings; a reference that obeyed them would be compared with another text."""
    free = ours(loaded(), PROMPT, 20)
    expected = free[: free.index(free[12]) + 1]
    assert 0 < len(expected) < 18
    model = loaded(eos=frozenset({free[12]}))
    assert ours(model, PROMPT, 20) == expected
    for habit in HABITS:
        model.model.generation_config = GenerationConfig(**habit)
        assert StockGenerate(model, name, 20).decode(PROMPT).output == expected, habit


def test_a_reference_does_not_change_the_model() -> None:
    model = loaded()
    before = model.model.generation_config.to_dict()
    first = StockGenerate(model, LOOKUP, 12).decode(PROMPT).output
    assert model.model.generation_config.to_dict() == before
    assert StockGenerate(model, GREEDY, 12).decode(PROMPT).output == first
