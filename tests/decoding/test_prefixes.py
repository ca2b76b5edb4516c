"""Requests that begin like a text in the cache copy its keys, and are answered as if each was prefilled by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import pytest
import torch

from hybrids import HYBRIDS, hybrid
from made import made
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.prefixes import longest_prefix
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.engines.choice import run_natively
from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.native import build
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from stub_target import StubTarget, cycle

VOCABULARY = 96
SAMPLING = NextToken(sample=True)
DRAFTERS = [configured("none"), configured("jacobi", costs="flat", window=4), configured("pool", costs="flat")]


class Counting(StubTarget):
    """Counts the tokens of every prefill."""

    def __init__(self) -> None:
        super().__init__(cycle(5))
        self.prefilled: list[int] = []

    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        super().prefill(row, tokens)
        self.prefilled.append(len(tokens))


def counted(prompts: Sequence[Sequence[int]], *, shares: bool = True, rows: int = 2) -> tuple[list[int], list[int]]:
    """The tokens of every prefill, and the lengths of the answers, which are checked."""
    target = Counting()
    stopping = Stopping(frozenset(), 4)
    decoder = Decoder(target, made(target, DrafterConfig()), stopping, batch_size=rows, shares_prefixes=shares)
    answers = decoder.answer([Request(prompt, key=i) for i, prompt in enumerate(prompts)])
    for prompt, answer in zip(prompts, answers, strict=True):
        text = list(prompt)
        for _ in range(4):
            text.append(cycle(5)(text))
        assert [*answer.prompt, *answer.output] == text
    return target.prefilled, [len(answer.output) for answer in answers]


def test_only_what_differs_is_prefilled() -> None:
    prompt = [1, 2, 3, 4, 1, 2]
    assert counted([prompt] * 5)[0] == [5, 0, 0, 0, 0]
    assert counted([prompt] * 5, shares=False)[0] == [5] * 5
    assert counted([prompt, [1, 2, 3, 9, 9, 9], [7, 7]])[0] == [5, 2, 1]


def test_a_prompt_goes_on_in_the_row_of_a_text_that_has_ended() -> None:
    # The first text is 1 2 3 4 5 1, of which the last token is not in the cache; its row is free for the next request.
    assert counted([[1, 2], [1, 2, 3, 4, 5, 1, 9, 9]], rows=1)[0] == [1, 2]


def test_a_row_that_is_in_use_keeps_its_text_when_it_is_copied() -> None:
    def requests() -> Iterator[Request]:
        for seed in range(12):
            draw = Random(seed)
            yield Request([1, 2, 3, *(draw.randrange(1, 6) for _ in range(draw.randrange(4)))], key=seed)

    target = Counting()
    decoder = Decoder(
        target, made(target, configured("none")), Stopping(frozenset({5}), 9), batch_size=4, shares_prefixes=True
    )
    found = [generation for _, generation in decoder.run(requests()) if generation.ended]
    assert len(found) == 12
    for generation in found:
        text = list(generation.prompt)
        while len(text) == len(generation.prompt) or (text[-1] != 5 and len(text) < len(generation.prompt) + 9):
            text.append(cycle(5)(text))
        assert [*generation.prompt, *generation.output] == text


def test_the_longest_prefix_is_found() -> None:
    texts = {0: [1, 2], 3: [1, 2, 3, 4], 5: [1, 2, 3, 9]}
    assert longest_prefix([1, 2, 3, 4, 5], texts, [9] * 6) == (3, 4)
    assert longest_prefix([1, 2, 3, 4, 5], texts, [9, 9, 9, 2, 9, 9]) == (5, 3)
    assert longest_prefix([1, 2], texts, [9] * 6) == (0, 2)
    assert longest_prefix([8], texts, [9] * 6) == (0, 0)
    assert longest_prefix([], texts, [9] * 6) == (0, 0)
    assert longest_prefix([1], {}, [9]) == (0, 0)


def requests(count: int) -> list[Request]:
    """Some with the same prompt, some with a part of it, and some that go on with it."""
    draw = Random(1)
    whole = [draw.randrange(1, VOCABULARY) for _ in range(40)]
    ends = [40, 40, 40, 25, 25, 40, 31, 12]
    return [Request(whole[: ends[i % 8]] + [3 + i // 8] * (i // 8), seed=i, key=i) for i in range(count)]


def answers(target: Target, config: DrafterConfig, *, rows: int, shares: bool) -> list[list[int]]:
    stopping, rule = Stopping(frozenset(range(7)), 20), SAMPLING
    decoder = Decoder(target, made(target, config), stopping, rule=rule, batch_size=rows, shares_prefixes=shares)
    return [answer.output for answer in decoder.answer(requests(20))]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_answers_are_those_of_requests_alone(family: str) -> None:
    target = Target(tiny_model(family))
    for config in DRAFTERS:
        alone = answers(target, config, rows=1, shares=False)
        assert answers(target, config, rows=3, shares=True) == alone
    assert len({len(answer) for answer in alone}) > 3  # so that rows are freed and refilled out of order


@pytest.mark.parametrize("family", sorted(HYBRIDS)[:2])
def test_models_that_keep_a_state_prefill_each_request(family: str) -> None:
    target = StatefulTarget(hybrid(family))
    config = configured("none")
    assert answers(target, config, rows=3, shares=True) == answers(target, config, rows=1, shares=False)


@pytest.mark.skipif(not build.has_compiler(), reason="there is no C++ compiler")
def test_in_our_cpp_a_copied_prefix_gives_the_same_bits() -> None:
    target = Target(tiny_model("llama"))
    run_natively(target)
    text = [draw % VOCABULARY for draw in range(5, 605, 7)]
    target.allocate(3, 0)
    target.prefill(0, text)
    for row, shared in ((1, 1), (2, 50)):
        assert target.copy_prefix(0, row, shared) == shared
        target.prefill(row, text[shared:])
    keys = target.cache._keys[0], target.cache._values[-1]
    for each in keys:
        assert torch.equal(each[0, :, : len(text)], each[1, :, : len(text)])
        assert torch.equal(each[0, :, : len(text)], each[2, :, : len(text)])
    assert target.copy_prefix(0, 0, 20) == 20  # a row may keep a part of its own
    target.prefill(0, text[20:])
    for each in keys:
        assert torch.equal(each[0, :, : len(text)], each[1, :, : len(text)])


def test_what_is_known_of_the_last_token_is_copied_with_the_whole_text_only() -> None:
    target = Target(tiny_model("llama"))
    target.allocate(3, 0)
    target.prefill(0, [5, 6, 7])
    assert target.copy_prefix(0, 1, 3) == 3 and target.copy_prefix(0, 2, 2) == 2
    final = target.cache.finals[0]
    assert final is not None and target.cache.finals[1] is final
    assert target.cache.finals[2] is None
    assert target.cache.lengths == [3, 3, 2]
    assert target.copy_prefix(0, 1, 0) == 0 and target.cache.lengths[1] == 0
