"""The guard: it pauses drafting that loses time, tries again at a bounded cost, and keeps drafting that pays."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
import torch

from lossless import ONE_EACH, ONE_NAMES
from made import costs_for, made
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.drafters.guard import BUDGET, CREDIT, PAUSED, Guard
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from stub_target import ALWAYS, ObligingTarget, StubTarget, successor_within_64

PRICE = 3.0  # plain steps that the stub drafter below takes for every draft


class Clock:
    """Stands still but for what drafting costs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Costly(Drafter):
    """Four tokens for the price of three plain steps; the target decides whether they were worth it."""

    Config = DrafterConfig

    def __init__(self, target: StubTarget, clock: Clock) -> None:
        super().__init__(target, DrafterConfig(), costs_for(target))
        self.clock, self.asked, self.observed = clock, 0, 0

    def propose(self, context: Context) -> Draft:
        self.asked += 1
        self.clock.now += PRICE
        return Draft(TokenTree.chain([1, 2, 3, 4][: context.room]), "costly")

    def observe(self, context: Context, step: Step) -> None:
        self.observed += 1


def decode(agree: float, length: int = 400) -> tuple[Guard, Costly, list, float]:
    """The guard, the drafter, the steps, and all seconds at the stub's prices, in plain steps."""
    target, clock = ObligingTarget(agree), Clock()
    inner = Costly(target, clock)
    guard = Guard(inner, clock)
    generation = Decoder(target, guard, Stopping(frozenset(), length)).decode([1, 2])
    seconds = clock.now + sum(target.costs(1 + len(tokens)) for tokens, *_ in generation.steps)
    return guard, inner, generation.steps, seconds / target.costs(1)


def test_a_drafter_that_never_pays_costs_the_first_tries_and_the_budget() -> None:
    _, inner, steps, seconds = decode(agree=0)
    assert inner.asked == sum(source != PAUSED for *_, source, _ in steps) < 5
    loss = PRICE + 1 / 16  # of one draft, of which nothing is accepted
    assert len(steps) == 400
    assert 400 < seconds <= 400 * (1 + BUDGET) + CREDIT + loss
    assert inner.observed == len(steps) - 1  # it observes plain steps too, so its state is current


def test_a_drafter_that_pays_is_never_paused() -> None:
    _, inner, steps, seconds = decode(agree=ALWAYS)
    assert all(source == "costly" for *_, source, _ in steps)
    assert inner.asked == len(steps) == 80
    assert seconds < 400


def test_a_paused_drafter_is_tried_only_while_the_account_is_not_negative() -> None:
    _, _, steps, _ = decode(agree=0, length=1000)
    tries = [i for i, (*_, source, _) in enumerate(steps) if source != PAUSED]
    assert tries[0] == 0
    gaps = np.diff(tries)
    assert all(gap >= (PRICE - CREDIT) / BUDGET for gap in gaps)
    assert all(gap == pytest.approx(PRICE / BUDGET, rel=0.05) for gap in gaps[1:])


def test_the_gains_of_one_request_do_not_pay_for_losses_of_the_next() -> None:
    target, clock = ObligingTarget(ALWAYS), Clock()
    inner = Costly(target, clock)
    guard = Guard(inner, clock)
    decoder = Decoder(target, guard, Stopping(frozenset(), 400))
    decoder.decode([1, 2])
    assert guard.balance == CREDIT * target.costs(1)
    target.agree = 0
    generation = decoder.decode([1, 2])
    assert sum(step[4] != PAUSED for step in generation.steps) < 5


class Searching(Costly):
    """Drafts for nothing, and searches for the price of three plain steps."""

    def __init__(self, target: StubTarget, clock: Clock) -> None:
        super().__init__(target, clock)
        self.searched = 0

    def propose(self, context: Context) -> Draft:
        return Draft(TokenTree.empty(), "searching")

    def explore(self, context: Context) -> None:
        self.searched += 1
        self.clock.now += PRICE


def test_a_search_is_paid_from_the_same_account() -> None:
    target, clock = ObligingTarget(0), Clock()
    inner = Searching(target, clock)
    unguarded = Decoder(target, inner, Stopping(frozenset(), 400)).decode([1, 2])
    assert inner.searched == len(unguarded.steps) - 1
    inner.searched, clock.now = 0, 0.0
    generation = Decoder(target, Guard(inner, clock), Stopping(frozenset(), 400)).decode([1, 2])
    assert 0 < inner.searched <= (CREDIT + 400 * BUDGET) / PRICE + 1
    assert len(generation.steps) == 400


class Pondering(Costly):
    """A free draft of right tokens now and then; between them it thinks for half a plain step, and drafts nothing."""

    def propose(self, context: Context) -> Draft:
        self.asked += 1
        if self.asked % 50 == 1:
            return Draft(TokenTree.chain([1, 2][: context.room]), "pondering")
        self.clock.now += self.target.costs(1) / 2
        return Draft(TokenTree.empty(), "pondering")


def test_the_time_of_an_empty_draft_is_charged() -> None:
    target, clock = ObligingTarget(ALWAYS), Clock()
    inner = Pondering(target, clock)
    generation = Decoder(target, Guard(inner, clock), Stopping(frozenset(), 400)).decode([1, 2])
    assert sum(source != PAUSED for *_, source, _ in generation.steps) < 30
    assert clock.now <= target.costs(1) * (400 * BUDGET + CREDIT + 2 + 1)  # the budget, the credit, the gain, a try


class Moody(Guard):
    """Stands down at steps that follow no pattern of text or drafter."""

    def __init__(self, inner: Drafter) -> None:
        super().__init__(inner)
        self.mood: Iterator[int] = count()

    def propose_batch(self, contexts: list[Context]) -> list[Draft]:
        for context in contexts:
            self.watched[context].seconds = 0.0
        self.balance = 1.0 if next(self.mood) % 5 in (0, 3, 4) else -1.0
        return super().propose_batch(contexts)


@pytest.fixture(scope="module")
def target() -> Target:
    """Sublayers are a modest addition to the stream, so that sparse drafts are right now and then."""
    model = tiny_model("llama", seed=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(100.0)
    return Target(model)


PROMPTS = [[64, 12, 64, 12, 64, 12], [30, 31, 32, 30, 31], [11]]
LENGTH = 12


def outputs(target: Target, drafter: Drafter, rule: NextToken) -> list[list[int]]:
    decoder = Decoder(target, drafter, Stopping(frozenset(), LENGTH), rule=rule, batch_size=2)
    run = decoder.run(Request(prompt, seed=i, key=i) for i, prompt in enumerate(PROMPTS))
    finished = {request.key: g for request, g in run if g.ended}
    sources = [step[4] for g in finished.values() for step in g.steps]
    if isinstance(drafter, Moody):
        assert 0 < sources.count(PAUSED) < len(sources)
    return [finished[i].output for i in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def plain(target: Target) -> list[list[int]]:
    return outputs(target, made(target, DrafterConfig()), NextToken())


@pytest.mark.slow
@pytest.mark.parametrize("config", ONE_EACH, ids=ONE_NAMES)
def test_every_drafter_stays_lossless_when_paused(
    config: DrafterConfig, target: Target, plain: list[list[int]]
) -> None:
    drafter = made(target, config)
    assert outputs(target, Moody(drafter), NextToken()) == plain
    # A sampled draft consumes the request's random numbers: another text of the same distribution.
    sampled = outputs(target, Moody(drafter), NextToken(sample=True, top_k=20))
    assert [len(output) for output in sampled] == [LENGTH] * len(PROMPTS)


def test_drafter_none_never_drafts_under_a_guard() -> None:
    target = StubTarget(successor_within_64)
    guard = Guard(made(target, DrafterConfig()))
    generation = Decoder(target, guard, Stopping(frozenset(), 20)).decode([1])
    assert generation.output == list(range(2, 22))
