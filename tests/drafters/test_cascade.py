"""The cascade: where and when the sparse model runs, how its guesses are used, and what is learned from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from made import made
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.growth import Growth
from selfdraft.core.tree import ROOT
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context, Draft, Drafter, Step
from selfdraft.drafters.pool import Pool, PoolConfig
from selfdraft.drafters.presets import configured
from stub_target import Rule, StubTarget, cycle, repeats, script, successor

OPTIONS = {"sources": ["suffix"], "branches": 1, "max_nodes": 6, "min_probability": 0.05}
LETTERS = np.random.default_rng(0).integers(1, 60, 400).tolist()


def priced(rule: Rule, sparse: Rule, drafting: float, verify: float = 0.0) -> StubTarget:
    """Verification costs `verify` more a token, a sparse forward `drafting`, both in forwards of one token."""
    target = StubTarget(rule, sparse)
    target.costs = CostCurve((1, 2), (1.0, 1.0 + verify))
    target.costs_of = lambda path: CostCurve((1, 2), (drafting, drafting))
    return target


def begin(text: Sequence[int], sparse: Rule, drafting: float = 0.01, **options: object) -> tuple[Drafter, Context]:
    target = priced(successor, sparse, drafting)
    drafter = made(target, configured("cascade", **{**OPTIONS, **options}))
    context = Context(0, list(text), len(text), 100, np.random.default_rng(0))
    target.allocate(1, 0)
    target.prefill(0, list(text)[:-1])
    drafter.start(context)
    return drafter, context


def decode(target: StubTarget, drafter: Drafter, prompt: Sequence[int], length: int) -> Generation:
    return Decoder(target, drafter, Stopping(frozenset(), length)).decode(list(prompt))


def test_without_lookups_the_sparse_model_drafts_a_chain() -> None:
    drafter, context = begin([1, 2, 3], successor, sparse_length=3)
    draft = drafter.propose(context)
    assert draft.tree.is_chain and draft.tree.tokens.tolist() == [4, 5, 6]
    assert draft.sources == ("sparse",) * 3


def test_the_sparse_model_continues_the_most_likely_branch() -> None:
    """Four looked-up tokens are almost certain; the tokens after them are not known."""
    drafter, context = begin([1, 2, 3, 4, 5] * 4, cycle(5), max_nodes=4, sparse_length=2)
    draft = drafter.propose(context)
    asked = drafter.states[context].growing.answer.question
    assert asked.branch == (1, 2, 3, 4) and asked.count == 2
    assert [offset for _, _, offset in drafter.target.drafted] == [0, 5]  # one forward reads the branch
    assert draft.tree.tokens.tolist()[:4] == [1, 2, 3, 4]


def test_with_unlikely_lookups_the_sparse_model_branches_at_the_root() -> None:
    doubtful = [9, 1, 9, 2, 9, 3, 9, 4, 9]  # four things have followed 9, and none of them is the sparse model's
    drafter, context = begin(doubtful, successor, branches=4, sparse_length=1)
    draft = drafter.propose(context)
    assert drafter.states[context].growing.answer.question.branch == ()
    at_root = draft.tree.tokens[draft.tree.parents == ROOT].tolist()
    assert at_root[0] == 10 and set(at_root[1:]) <= {1, 2, 3, 4}


class Watched(Pool):
    """Notes at every step whether the sparse model was asked."""

    def __init__(self, target: StubTarget, **options: object) -> None:
        cascade = made(target, configured("cascade", **{**OPTIONS, **options}))
        super().__init__(target, cascade.config, cascade.costs, cascade.policy)
        self.asked: list[bool] = []

    def propose(self, context: Context) -> Draft:
        draft = super().propose(context)
        self.asked.append(self.states[context].growing.answer is not None)
        return draft


@pytest.mark.parametrize("drafting", [0.9, 5.0])
def test_an_expensive_sparse_model_is_not_asked(drafting: float) -> None:
    text = LETTERS[:30] + LETTERS[10:30]
    target = priced(script(LETTERS), script(LETTERS), drafting)
    cascade, pool = Watched(target), made(target, PoolConfig(**OPTIONS))
    ours, theirs = (decode(target, drafter, text, 40) for drafter in (cascade, pool))
    assert not any(cascade.asked)
    assert [step[:3] for step in ours.steps] == [step[:3] for step in theirs.steps]


def test_a_sparse_model_that_is_right_and_cheap_saves_forwards() -> None:
    target = priced(script(LETTERS), script(LETTERS), drafting=0.1)
    generation = decode(target, made(target, configured("cascade", **OPTIONS)), LETTERS[:2], 80)
    assert generation.output == LETTERS[2:82]
    assert generation.counts.target_forwards <= 80 / 3


def test_a_wrong_sparse_model_is_given_up_and_tried_again_later() -> None:
    target = priced(script(LETTERS), repeats, drafting=0.35)
    drafter = Watched(target, sparse_length=2)
    decode(target, drafter, LETTERS[:2], 380)
    asked = drafter.asked
    assert asked[0] and sum(asked) < len(asked) / 6
    assert any(asked[-100:])


def test_no_branch_is_longer_than_the_remaining_tokens() -> None:
    drafter, context = begin([1, 2, 3], successor, sparse_length=8)
    context.room = 2
    assert drafter.propose(context).tree.tokens.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("emitted", "knows", "goes_on"), [((4, 5, 6, 60), 1, 2), ((4, 5, 60), 1, 1), ((4, 60), 1, 0), ((60,), 0, None)]
)
def test_estimates_count_right_first_and_later_guesses_of_the_sparse_model(
    emitted: tuple[int, ...], knows: int, goes_on: int | None
) -> None:
    drafter, context = begin([1, 2, 3], successor, sparse_length=3)
    draft = drafter.propose(context)
    _observe(drafter, context, draft, emitted)
    counts = drafter.states[context].estimates._counts
    assert counts["asked", 8] == (1, knows)
    if goes_on is None:
        assert "goes on" not in counts
    else:
        trials, hits = counts["goes on"]
        assert (round(trials), round(hits)) == (min(goes_on + 1, 2), goes_on)


def _observe(drafter: Drafter, context: Context, draft: Draft, emitted: tuple[int, ...]) -> None:
    context.tokens += emitted
    n = len(draft.tree) + 1
    best = torch.stack([torch.arange(1.0, drafter.best + 1).expand(n, -1), torch.full((n, drafter.best), 0.1)])
    path = tuple(range(len(emitted) - 1))
    drafter.observe(context, Step(draft, torch.zeros(0), torch.zeros(n, dtype=torch.long), path, emitted, best=best))


def test_a_branch_off_the_accepted_path_changes_no_estimate() -> None:
    drafter, context = begin([1, 2, 3, 4, 5] * 4, cycle(5), max_nodes=4, sparse_length=2)
    _observe(drafter, context, drafter.propose(context), (1, 2, 60))
    assert not any(kind == "goes on" or kind[0] == "asked" for kind in drafter.states[context].estimates._counts)


def test_a_branch_is_the_tokens_from_root_to_node() -> None:
    growth = Growth([7, 8, 9], [ROOT, 0, ROOT], [0.9, 0.5, 0.1])
    assert [growth.branch(node) for node in (ROOT, 0, 1, 2)] == [(), (7,), (7, 8), (9,)]


def test_missing_layers_and_two_definitions_of_a_path_are_refused() -> None:
    with pytest.raises(UserError, match=r"skip_mlp=\[9\]"):
        begin([1, 2], successor, skip_mlp=[9])
    with pytest.raises(UserError, match="path trained has no option 'skip_mlp'"):
        configured("cascade", adapter="somewhere", skip_mlp=[1])
