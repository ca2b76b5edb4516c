"""Rotary positions that depend on the length of the text: texts across the limit equal those of `generate`.

Every kind of rope whose table changes, in a family that keeps its keys then and in those that compute them again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lossless import ONE_EACH, ONE_NAMES, cannot
from made import made
from selfdraft.core.errors import UserError
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.models.forward import target as target_module
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.reference.teacher_forced import teacher_forced_in
from subjects import MILDER, stock_output

LIMIT, LENGTH, HALF = 32, 18, 4  # HALF: frequencies of a head of 8
# They cross the limit late, early, at once, and before they begin; the second says things twice, for lookups to find.
PROMPTS = [
    [5, 17, 3, 60, 42, 8, 9, 30, 77, 2, 50, 61, 13, 24, 35, 46, 88, 70],
    [7, 33, 81] * 9,
    [64, 12, 5, 9] * 8,
    list(range(20, 65)),
]

LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * HALF,
    "long_factor": [4.0, 5.0, 6.0, 7.0],
    "original_max_position_embeddings": LIMIT,
    "factor": 4.0,
}
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
BY_LAYER = {
    "full_attention": LONGROPE,
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


def phimoe() -> PreTrainedModel:
    """Scales its cosines by other factors past the limit, too."""
    shape = tiny_model("phi3", original_max_position_embeddings=LIMIT).config.to_dict()
    names = ("vocab_size", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    names += ("num_key_value_heads", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
    rope = LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.4}
    config = AutoConfig.for_model(
        "phimoe", **{name: shape[name] for name in names}, max_position_embeddings=512, num_local_experts=2,
        rope_parameters=rope, original_max_position_embeddings=LIMIT,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


MODELS = {
    "phi3": lambda: tiny_model("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=LIMIT),
    "phimoe": phimoe,
    "llama": lambda: tiny_model("llama", rope_parameters=LONGROPE),
    "gemma3_text": lambda: tiny_model("gemma3_text", rope_parameters=BY_LAYER),
    "llama dynamic": lambda: tiny_model("llama", rope_parameters=DYNAMIC, max_positions=LIMIT),
}
RECOMPUTE = ("phi3", "phimoe")


@cache
def model_of(name: str) -> PreTrainedModel:
    model = MODELS[name]()
    with torch.no_grad():  # drafts are right now and wrong then: see subjects.py
        model.get_input_embeddings().weight.mul_(MILDER.get(name.split()[0], 1.0))
    return model


@cache
def expected(name: str, prompt: tuple[int, ...], length: int = LENGTH) -> list[int]:
    """By a fresh copy each: transformers keeps dynamic tables of the longest text it has seen."""
    return stock_output(copy.deepcopy(model_of(name)), prompt, length)


@cache
def target_of(name: str) -> Target:
    target = Target(copy.deepcopy(model_of(name)))
    target.max_positions = 512  # "dynamic" is for texts past the positions that the configuration names
    return target


def decode(
    target: Target, config: DrafterConfig, prompts: Sequence[list[int]], batch_size: int, length: int = LENGTH
) -> list[list[int]]:
    drafter = made(target, config)
    decoder = Decoder(target, drafter, Stopping(frozenset(), length), batch_size=batch_size)
    return [g.output for g in decoder.answer([Request(p, seed=i, key=i) for i, p in enumerate(prompts)])]


CASES = []
for _number, (_config, _label) in enumerate(zip(ONE_EACH, ONE_NAMES, strict=True)):
    _name = list(MODELS)[_number % len(MODELS)]  # by turns: each model meets every fifth drafter
    if _name == "phimoe" and getattr(_config, "path", _config).name == "width_skip":
        _name = "llama"  # a mixture's neurons cannot be chosen
    if not cannot(_config, _name.split()[0]):
        CASES.append(pytest.param(_config, _name, id=f"{_label}-{_name}"))


@pytest.mark.slow
@pytest.mark.parametrize(("config", "name"), CASES)
def test_texts_across_the_rope_limit_equal_those_of_generate(name: str, config: DrafterConfig) -> None:
    wanted = [expected(name, tuple(p)) for p in PROMPTS]
    batch_size = 1 + 2 * (ONE_EACH.index(config) % 2)
    assert decode(target_of(name), config, PROMPTS, batch_size) == wanted


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_plain_decoding_across_the_rope_limit_equals_generate(name: str, batch_size: int) -> None:
    wanted = [expected(name, tuple(p)) for p in PROMPTS]
    assert decode(target_of(name), DrafterConfig(), PROMPTS, batch_size) == wanted


@pytest.mark.parametrize("name", MODELS)
def test_all_chunks_of_a_prompt_are_rotated_by_its_whole_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", 16)
    prompt = PROMPTS[-1]
    assert decode(target_of(name), DrafterConfig(), [prompt], 1) == [expected(name, tuple(prompt))]


@pytest.mark.parametrize("name", MODELS)
def test_families_that_recompute_keys_at_the_limit_are_detected(name: str) -> None:
    rotary = target_of(name).rotary
    assert rotary.limits == {LIMIT}
    assert rotary.recomputed_past == (LIMIT if name in RECOMPUTE else None)


@pytest.mark.parametrize("name", MODELS)
def test_single_tokens_and_blocks_agree_across_the_rope_limit(name: str) -> None:
    """What a certificate takes for rounding goes through these forwards."""
    target, prompt = target_of(name), PROMPTS[1]
    text = [*prompt, *expected(name, tuple(prompt))]
    single, *blocks = teacher_forced_in(target, text, len(prompt) - 1, (1, 2, 8, 16))
    for block in blocks:
        torch.testing.assert_close(block, single, rtol=1e-3, atol=1e-3)
    assert single[:-1].argmax(-1).tolist() == text[len(prompt) :]


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_token_past_the_limit_is_a_mismatch(name: str) -> None:
    target, prompt = target_of(name), PROMPTS[0]
    right = expected(name, tuple(prompt))
    wrong = [*right[:-1], (right[-1] + 1) % target.vocab_size]
    assert Certifier(target).certify(prompt, right, right).verdict == "exact"
    assert Certifier(target).certify(prompt, wrong, right).verdict == "mismatch"


def test_an_unknown_rope_that_depends_on_the_length_is_refused() -> None:
    model = tiny_model("llama")
    stock = type(model.model.rotary_emb)

    class Stretched(stock):
        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return super().forward(x, position_ids * 100 / (100 + position_ids.max()))

    model.model.rotary_emb = Stretched(model.config)
    with pytest.raises(UserError, match="depend on the length of the text"):
        Target(model)


def test_a_difference_only_past_the_rope_limit_is_noticed_on_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", rope_parameters=LONGROPE)
    stock_forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output, positions = stock_forward(*args, **kwargs), kwargs.get("position_ids")
        if positions is not None and int(positions.max()) >= LIMIT:
            output.logits = output.logits * 1.05
        return output

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(UserError, match="give other logits than its own forward"):
        Target(model)
