"""drafter.learn=true: the drafts of a stream of texts become better, and the texts stay the target's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from made import made
from selfdraft.core.errors import UserError
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Drafter
from selfdraft.drafters.guard import Guard
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.trained.adapter import Adapter
from selfdraft.modules.online import OnlineLearner, acceptance_of, learns
from selfdraft.modules.recipes import RECIPES

NEW_TOKENS, ROUNDS = 24, 14
VOCABULARY, ROUND, ANSWERS = 8, 50, 1000  # of sampled answers: token ids, answers between two steps, all answers
PROMPT = [1, 5, 2, 6, 1, 5]
PROMPTS = [[5, 17, 3], [60, 42, 8, 9], [7, 7, 31]]


def target_of(seed: int = 4, vocabulary: int = 97) -> Target:
    return Target(tiny_model("llama", seed=seed, vocab_size=vocabulary, max_positions=256), packed=False)


UNTRAINED = {
    "exit_adapter": {"exit_layer": 1, "twins": [3], "feature": True, "vocabulary": None},
    "jump": {"copies": [2, 3], "vocabulary": None},
}


def write_untrained(target: Target, folder: Path, name: str = "exit_adapter") -> None:
    """Write weights of an exit after the first layer, or of a jump, that nobody has trained yet."""
    recipe = RECIPES[name](RECIPES[name].Config(**UNTRAINED[name]), lambda device: target, draft_ids=None, seed=0)
    recipe.prepare(target)
    recipe.adapter().write(folder)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_untrained(target_of(), tmp_path)
    return tmp_path


def drafter_of(target: Target, folder: Path, name: str = "trained", **options: Any) -> Drafter:
    usual = {"draft_length": 2, "learn": True, "learn_every": 4, "learn_rate": 3e-3}
    reused = {"reuse": True, "bonus": "keep"} if name == "trained" else {"length": "threshold", "siblings": False}
    return made(target, configured(name, adapter=str(folder), **{**usual, **reused, **options}))


@pytest.mark.parametrize(("recipe", "name"), [("exit_adapter", "trained"), ("jump", "jump")])
def test_acceptance_grows_over_the_stream_and_the_text_stays(recipe: str, name: str, tmp_path: Path) -> None:
    target, adapter = target_of(), tmp_path
    write_untrained(target, adapter, recipe)
    expected = [Decoder(target, made(target, configured("none")), stopping()).decode(p).output for p in PROMPTS]
    drafter = drafter_of(target, adapter, name)
    learner, rates = OnlineLearner(target, drafter, seed=0), []
    decoder = Decoder(target, drafter, stopping())
    for _ in range(ROUNDS):
        offered = accepted = 0
        for prompt, text in zip(PROMPTS, expected, strict=True):
            answer = decoder.decode(prompt)
            assert answer.output == text
            offered, accepted = offered + answer.counts.offered[0], accepted + answer.counts.accepted[0]
            told = learner.observe(answer)
            assert told["seconds"] > 0
        rates.append(accepted / offered)
    assert rates[-1] > rates[0] + 0.3
    assert learner.steps > ROUNDS
    saved = learner.adapter()
    assert not torch.equal(saved.tensors["feature.weight"], Adapter.read(adapter).tensors["feature.weight"])


def stopping() -> Stopping:
    return Stopping(frozenset(), NEW_TOKENS)


@pytest.mark.slow
def test_sampled_answers_keep_their_distribution_while_weights_change(tmp_path: Path) -> None:
    target = target_of(vocabulary=VOCABULARY)
    with torch.no_grad():
        target.model.lm_head.weight.mul_(0.35)  # flat enough that no answer dominates
    write_untrained(target, tmp_path)
    drafter = drafter_of(target, tmp_path, learn_every=60)
    rule, plain = NextToken(sample=True), expected_pairs(target)
    learner = OnlineLearner(target, drafter, seed=0)
    decoder = Decoder(target, drafter, Stopping(frozenset(), 3), rule=rule, batch_size=ROUND)
    counts = torch.zeros(VOCABULARY, VOCABULARY)
    for begin in range(0, ANSWERS, ROUND):
        requests = [Request(PROMPT, seed=begin + i) for i in range(ROUND)]
        for answer in decoder.answer(requests):
            counts[answer.output[1], answer.output[2]] += 1
            learner.observe(answer)
    assert learner.steps >= 4
    assert chisquare(counts.flatten().numpy(), (ANSWERS * plain).flatten().numpy()).pvalue > 1e-4


def expected_pairs(target: Target) -> torch.Tensor:
    """The probability of every second and third token of an answer, by the stock model."""
    chance, texts = torch.ones(1, dtype=torch.double), torch.tensor([PROMPT])
    for _ in range(3):
        with torch.no_grad():
            step = target.model(texts).logits[:, -1].double().softmax(-1)
        chance = (chance[:, None] * step).flatten()
        after = torch.arange(VOCABULARY).repeat(len(texts))[:, None]
        texts = torch.cat([texts.repeat_interleave(VOCABULARY, 0), after], dim=1)
    return chance.view(VOCABULARY, VOCABULARY, VOCABULARY).sum(0)


def test_steps_are_taken_every_so_many_verifications(adapter: Path) -> None:
    target = target_of()
    drafter = drafter_of(target, adapter, learn_every=1000)
    learner = OnlineLearner(target, Guard(drafter), seed=0)
    before = drafter.policy.typical
    answer = Decoder(target, drafter, stopping()).decode(PROMPTS[0])
    assert learner.observe(answer)["steps"] == 0 and drafter.policy.typical is before
    learner.config = replace(learner.config, learn_every=len(answer.steps))
    assert learner.observe(answer)["steps"] == 2 and drafter.policy.typical is not before


def test_what_cannot_learn_says_so(adapter: Path) -> None:
    target = target_of()
    untrained = made(target, configured("layer_skip", learn=True))
    with pytest.raises(UserError, match="has no trained weights to go on with"):
        OnlineLearner(target, untrained, seed=0)
    drafter = drafter_of(target, adapter)
    stored = Adapter.read(adapter)
    Adapter("sparse_distill", stored.settings, stored.tensors).write(adapter)
    with pytest.raises(UserError, match="recipe 'sparse_distill' cannot learn"):
        OnlineLearner(target, drafter, seed=0)
    target.compiled = {(1,): None}
    with pytest.raises(UserError, match=r"model\.engine=eager"):
        OnlineLearner(target, drafter, seed=0)
    target.dtype = torch.bfloat16
    with pytest.raises(UserError, match=r"model\.dtype=float32"):
        OnlineLearner(target, drafter, seed=0)
    assert not learns(configured("trained", adapter=str(adapter))) and not learns(configured("pool"))


def test_acceptance_is_that_of_first_tokens() -> None:
    lines = [
        {"acceptance_by_depth": [{"offered": 4, "accepted": 1}, {"offered": 1, "accepted": 1}]},
        {"acceptance_by_depth": []},
        {"acceptance_by_depth": [{"offered": 2, "accepted": 2}]},
    ]
    assert acceptance_of(lines) == [0.25, 1.0]
