"""Probabilities of recorded tokens: those of the stock model's own forward."""

from __future__ import annotations

import pytest
import torch

from made import made
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.chances import chances_of, distributions_of
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model

PROMPT = [64, 12, 64, 12, 64, 12, 64, 12]
LENGTH = 40  # more than two blocks
RULES = {"greedy": NextToken(), "sampled": NextToken(sample=True, temperature=0.5, top_k=9)}


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(tiny_model())


@torch.inference_mode()
def stock(target: Target, output: list[int], rule: NextToken) -> torch.Tensor:
    logits = target.model(torch.tensor([PROMPT + output]), use_cache=False).logits[0, len(PROMPT) - 1 : -1]
    return rule.probabilities(logits)


@pytest.mark.parametrize("kind", RULES)
def test_every_emitted_token_has_the_stock_model_s_probability(target: Target, kind: str) -> None:
    rule = RULES[kind]
    drafter = made(target, configured("pool", costs="flat"))
    answer = Decoder(target, drafter, Stopping(frozenset(), LENGTH), rule=rule).decode(PROMPT, seed=1)
    expected = stock(target, answer.output, rule)
    found = distributions_of(target, rule, PROMPT, answer.output)
    assert torch.allclose(found, expected, atol=1e-4)
    chances = chances_of(found, answer.steps)
    assert len(chances) == len(answer.steps)
    at = 0
    for (tokens, parents, accepted, bonus, *_), step in zip(answer.steps, chances, strict=True):
        assert len(step) == len(tokens) + 1
        emitted = [step[node] for node in accepted] + ([step[-1]] if bonus is not None else [])
        for chance in emitted:
            assert chance == pytest.approx(float(expected[at, answer.output[at]]), rel=0.01, abs=1e-4)
            at += 1
        for node, chance in enumerate(step[:-1]):
            parent = node - 1 if parents is None else parents[node]
            assert (chance is not None) == (parent in (-1, *accepted)) or at >= len(answer.output)
    assert at == len(answer.output)


def test_rejected_branches_have_the_probability_of_their_first_token() -> None:
    distributions = torch.tensor([[0.1, 0.6, 0.3], [0.7, 0.2, 0.1], [0.2, 0.3, 0.5]])
    steps = [[[1, 0, 2, 2], [-1, 0, -1, 2], [0], 0, "pool", None], [[], None, [], 2, "pool", None]]
    assert chances_of(distributions, steps) == [
        [pytest.approx(0.6), pytest.approx(0.7), pytest.approx(0.3), None, pytest.approx(0.7)],
        [pytest.approx(0.5)],
    ]


def test_steps_after_the_last_distribution_are_left_out() -> None:
    distributions = torch.full((2, 3), 1 / 3)
    steps = [[[], None, [], 2, "", None], [[1, 1], None, [0], 1, "", None]]
    assert chances_of(distributions, steps) == [[0.333]]
