"""SWIFT's search: which candidates are scored, in which order and how, against a plain version of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from made import made
from selfdraft.core.costs import CostCurve
from selfdraft.core.skipset import SkipSet
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context
from selfdraft.drafters.chain import Chain
from selfdraft.drafters.paths.swift import State
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model

PROMPT = (7, 33, 81, 2, 14, 27)
LAYERS, WINDOW, TOKENS = 8, 6, 32
TWO, FEW = (PROMPT, (5, 17, 3, 60, 42)), 14  # two prompts; enough tokens for a window and some candidates


class Watched(Chain):
    """Keeps the contexts of its requests and the text of the last search, so that tests can look at the search."""

    def start(self, context: Context) -> None:
        super().start(context)
        self.contexts = [*getattr(self, "contexts", []), context]

    def explore(self, context: Context) -> None:
        self.searched = list(context.tokens)
        super().explore(context)


@cache
def decode(*prompts: tuple[int, ...], tokens: int = TOKENS, **options: Any) -> tuple[Watched, Target, list]:
    """Decode PROMPT, or those that are given, with these options. Tests share a result: they only read it."""
    model = tiny_model("llama", layers=LAYERS)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(40.0)  # so that sets differ in their matchness
    target = Target(model)
    config = configured("swift", **{**OPTIONS, **options})
    chain = made(target, config)
    drafter = Watched(target, config, chain.costs, chain.policy)
    decoder = Decoder(target, drafter, Stopping(frozenset(), tokens))
    requests = [Request(list(prompt), seed=5) for prompt in prompts or (PROMPT,)]
    outputs = [g.output for _, g in decoder.run(requests) if g.ended]
    return drafter, target, outputs


def search_of(drafter: Watched) -> State:
    """The search of the first request."""
    return drafter.policy.states[drafter.contexts[0]]


def matchness(model: PreTrainedModel, target: Target, skip: SkipSet, prompt: Sequence[int], tokens: list[int]) -> float:
    """With the stock model: keys of the prompt from the whole, the tokens in one pass without the set's sublayers."""
    hooks = []
    with torch.inference_mode():
        past = model(torch.tensor([prompt[:-1]]), use_cache=True).past_key_values
        for layer in skip.attention:
            module = getattr(target.anatomy.layers[layer], target.anatomy.attention_name)
            hooks.append(module.register_forward_hook(lambda m, x, out: (torch.zeros_like(out[0]), *out[1:])))
        for layer in skip.mlp:
            module = getattr(target.anatomy.layers[layer], target.anatomy.mlp_name)
            hooks.append(module.register_forward_hook(lambda m, x, out: torch.zeros_like(out)))
        logits = model(torch.tensor([[prompt[-1], *tokens[:-1]]]), past_key_values=past).logits[0]
        for hook in hooks:
            hook.remove()
    return float((logits.argmax(-1) == torch.tensor(tokens)).float().mean())


def random_set(rng: np.random.Generator, count: int) -> SkipSet:
    inner = LAYERS - 2
    picked = rng.choice(2 * inner, size=count, replace=False).tolist()
    return SkipSet.of(LAYERS, [1 + i for i in picked if i < inner], [1 + i - inner for i in picked if i >= inner])


OPTIONS = {
    "context_window": WINDOW,
    "bayes_interval": 1000,
    "siblings": False,
    "min_confidence": 0.0,
    "draft_length": 3,
}


def test_candidates_and_scores_are_those_of_the_paper() -> None:
    """From one seed: the same random sets in the same order, each with its agreement on the first window of the text.

    The first set is dropped for the first random one that predicts anything; after that only a better one is taken.
    """
    drafter, target, (output,) = decode()
    state = search_of(drafter)
    history, rng = state.search.history, np.random.default_rng(5)
    rng.random(TOKENS + 1)  # the loop's own numbers come first
    assert len(history) >= 8
    best, best_score = SkipSet.spread(LAYERS, 0.45), 0.0
    for candidate, score in history:
        expected = random_set(rng, int(2 * (LAYERS - 2) * 0.45))
        assert candidate == expected
        assert score == pytest.approx(matchness(target.model, target, candidate, PROMPT, output[:WINDOW]))
        if score > best_score:
            best, best_score = candidate, score
    assert (state.search.best, state.search.score) == (best, best_score)
    assert state.path.skip == best
    assert state.forwards == len(history)
    assert len({score for _, score in history}) > 1


def test_every_few_candidates_the_gaussian_process_proposes_one_of_the_same_size() -> None:
    drafter, _, _ = decode(bayes_interval=3)
    history = search_of(drafter).search.history
    rng = np.random.default_rng(5)
    rng.random(TOKENS + 1)
    randoms = [random_set(rng, 5) for _ in range(2)]
    assert [candidate for candidate, _ in history[:2]] == randoms
    assert history[2][0] != random_set(rng, 5)  # it was chosen, out of a pool
    assert all(len(candidate) == 5 for candidate, _ in history)


@pytest.mark.slow
def test_scoring_starts_with_a_full_window_and_repeats_at_every_interval() -> None:
    one = search_of(decode()[0])
    third = search_of(decode(interval=3)[0])
    assert len(one.search.history) < one.steps  # the first steps had no window
    assert 0 < len(third.search.history) <= third.steps // 3
    none = search_of(decode(context_window=TOKENS + 1)[0])
    assert none.search.history == []


@pytest.mark.parametrize(
    ("limit", "value", "most"), [("enough", 0.01, 4), ("tolerance", 1, 12), ("max_candidates", 4, 4)]
)
def test_the_search_ends(limit: str, value: float, most: int) -> None:
    state = search_of(decode(**{limit: value})[0])
    assert state.done and len(state.search.history) <= most
    assert len(state.search.history) < len(search_of(decode()[0]).search.history)


def test_a_scored_initial_set_is_replaced_only_by_a_better_one() -> None:
    drafter, target, (output,) = decode(score_initial=True)
    history = search_of(drafter).search.history
    first = SkipSet.spread(LAYERS, 0.45)
    assert history[0] == (first, pytest.approx(matchness(target.model, target, first, PROMPT, output[:WINDOW])))


@pytest.mark.slow
def test_a_window_of_recent_tokens_moves_with_the_text() -> None:
    drafter, target, _ = decode(recent_window=True)
    candidate, score = search_of(drafter).search.history[-1]
    emitted = drafter.searched[len(PROMPT) :]  # up to the last step but one: no search follows the last one
    start = len(emitted) - WINDOW
    before = [*PROMPT, *emitted[:start]]
    assert score == pytest.approx(matchness(target.model, target, candidate, before, emitted[start:]))


@pytest.mark.slow
def test_an_incumbent_is_scored_again_before_it_is_replaced_and_on_a_new_text() -> None:
    plain = search_of(decode(recent_window=True)[0])
    again = decode(recent_window=True, rescore_incumbent=True)[0]
    state = search_of(again)
    assert plain.forwards == len(plain.search.history)
    assert state.forwards > len(state.search.history)
    warm, _, _ = decode(*TWO, tokens=FEW, rescore_incumbent=True, warm=True)
    cold, _, _ = decode(*TWO, tokens=FEW, rescore_incumbent=True)
    states = [[drafter.policy.states[c] for c in drafter.contexts] for drafter in (warm, cold)]
    assert states[0][0] is states[0][1] and states[1][0] is not states[1][1]
    assert states[0][0].fresh


REPAIRS = ("score_initial", "recent_window", "rescore_incumbent", "cost_aware", "neighbours")


@pytest.mark.slow
def test_warm_or_cold_and_with_any_repair_the_text_is_the_same() -> None:
    plain = decode(*TWO, tokens=FEW)[2]
    for repair in REPAIRS:
        assert decode(*TWO, tokens=FEW, warm=True, **{repair: True})[2] == plain, repair
    for warm in (False, True):
        assert decode(*TWO, tokens=FEW, warm=warm, **dict.fromkeys(REPAIRS, True))[2] == plain, warm


def test_of_equally_good_sets_the_cheaper_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter, _, _ = decode(cost_aware=True)
    policy = drafter.policy
    monkeypatch.setattr(policy, "_full", CostCurve((1, 64), (1.0, 2.0)))
    monkeypatch.setattr(policy, "_saves", [0.02, 0.08])  # of 1.0: an MLP costs more than an attention
    context = drafter.contexts[0]
    monkeypatch.setattr(drafter.target, "replay", lambda path, row, position, tokens: torch.zeros(len(tokens), 96))
    state = drafter.policy.states[context]
    scores = [policy._score(context, state, SkipSet.of(LAYERS, *s)) for s in (([1, 2], []), ([], [1, 2]))]
    assert scores[0] < scores[1]
