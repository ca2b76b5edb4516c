"""Past a model's positions, `generate` continues, and so do drafters."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from lossless import ONE_EACH, ONE_NAMES
from made import made
from selfdraft.decoding import Drafting
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from subjects import PROMPTS, stock_output

POSITIONS, LENGTH = 40, 28  # the longest prompt has 23 tokens


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(tiny_model(max_positions=POSITIONS))


@cache
def expected(target: Target) -> list[list[int]]:
    return [stock_output(target.model, prompt, LENGTH) for prompt in PROMPTS[1:3]]


@pytest.mark.slow
@pytest.mark.parametrize("config", ONE_EACH, ids=ONE_NAMES)
def test_every_drafter_continues_past_the_positions_like_generate(target: Target, config: DrafterConfig) -> None:
    stopping = Stopping(frozenset(), LENGTH, past_positions=True)
    decoder = Decoder(target, made(target, config), stopping, batch_size=2)
    done = decoder.answer([Request(prompt, seed=i) for i, prompt in enumerate(PROMPTS[1:3])])
    assert [g.output for g in done] == expected(target)
    assert {g.ended for g in done} == {"length"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("length", [50, 90])
def test_drafting_emits_as_many_tokens_as_generate(family: str, length: int) -> None:
    """Also for a prompt that is itself as long as the positions, or longer."""
    model = tiny_model(family, max_positions=64)
    prompt = torch.randint(1, 96, (1, length), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    ours = model.generate(prompt, custom_generate=Drafting("pool"), **options)
    assert ours.tolist() == model.generate(prompt, **options).tolist()
    assert ours.shape[1] == length + 40
