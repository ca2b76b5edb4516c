"""The cascade: who drafts when, where the branch hangs, and what is learned from what became of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.ngrams import NgramIndex
from selfdraft.drafters.base import Context, Draft, Step
from selfdraft.drafters.cascade import Cascade, CascadeConfig
from stub_target import Rule, StubTarget, cycle, repeats, successor


def begin(
    text: Sequence[int], sparse: Rule = successor, verify: float = 0.0, drafting: float = 0.01, **options: float
) -> tuple[Cascade, Context]:
    """A drafter on a stub whose verification costs `verify` more a token, and whose sparse forward costs `drafting`."""
    target = StubTarget(successor, sparse)
    target.costs = CostCurve((1, 2), (1.0, 1.0 + verify))
    target.costs_of = lambda path: CostCurve((1, 2), (drafting, drafting))
    drafter = Cascade(target, CascadeConfig(**options))
    context = Context(0, list(text), len(text), 100, np.random.default_rng(0))
    target.allocate(1, 0)
    target.prefill(0, list(text)[:-1])
    drafter.start(context)
    return drafter, context


def observe(drafter: Cascade, context: Context, draft: Draft, path: tuple[int, ...]) -> None:
    emitted = (*draft.tree.tokens[list(path)].tolist(), 60)
    context.tokens += emitted
    empty = torch.zeros(0)
    drafter.observe(context, Step(draft, empty, empty, path, emitted))


def test_where_lookups_are_silent_the_sparse_model_drafts_a_chain() -> None:
    drafter, context = begin([1, 2, 3], sparse_length=3)
    tree = drafter.propose(context).tree
    assert tree.is_chain
    assert tree.tokens.tolist() == [4, 5, 6]


def test_what_is_looked_up_is_gone_on_with_where_the_sparse_model_agrees() -> None:
    drafter, context = begin([1, 2, 3, 1, 2, 3], cycle(3), lookup_length=2, sparse_length=2)
    tree = drafter.propose(context).tree
    assert tree.is_chain
    assert tree.tokens.tolist() == [1, 2, 3, 1]
    assert drafter.target.drafted[0][2] == 0  # both tokens looked up are read in one forward, at the root
    assert [offset for _, _, offset in drafter.target.drafted] == [0, 3]


@pytest.mark.parametrize(
    ("sparse", "split", "parents"),
    [
        (lambda text: 1 if text[-1] == 3 else text[-1] + 10, 1, [-1, 0, 0, 2]),  # agrees with 1, not with 2
        (lambda text: text[-1] + 10, 0, [-1, 0, -1, 2]),
    ],
)
def test_it_branches_off_where_the_sparse_model_says_something_else(
    sparse: Rule, split: int, parents: list[int]
) -> None:
    drafter, context = begin([1, 2, 3, 1, 2, 3], sparse, lookup_length=2, sparse_length=2)
    tree = drafter.propose(context).tree
    assert tree.tokens[:2].tolist() == [1, 2]
    assert tree.parents.tolist() == parents
    root = [3, 1][split]
    assert tree.tokens[2:].tolist() == [sparse([root]), sparse([sparse([root])])]


def test_nothing_is_drafted_where_no_plan_pays() -> None:
    dear = {"verify": 5.0, "drafting": 5.0}
    drafter, context = begin([1, 2, 1, 2], **dear)
    assert len(drafter.propose(context).tree) == 0
    drafter, context = begin([1, 2, 1, 2], **dear, min_gain=0.0)
    assert len(drafter.propose(context).tree) == 1


def test_a_source_that_is_wrong_is_given_up_and_tried_again_one_day() -> None:
    drafter, context = begin([1, 2, 3], repeats, drafting=0.3, sparse_length=2, ngram_min=3)
    drafted = []
    for _ in range(120):
        draft = drafter.propose(context)
        drafted.append(len(draft.tree) > 0)
        observe(drafter, context, draft, ())
        context.tokens[-1] = len(context.tokens) % 53  # no three of them stood there before
        context.memory.index = NgramIndex(3, 3)
    assert drafted[0]
    assert not all(drafted)
    assert any(drafted[drafted.index(False) :])


def test_each_source_learns_from_its_own_part_of_the_path() -> None:
    drafter, context = begin([1, 2, 3, 1, 2, 3], cycle(3), lookup_length=2, sparse_length=2)
    draft = drafter.propose(context)
    observe(drafter, context, draft, (0, 1, 2))  # both looked up are right, and one of the two behind
    memory = context.memory
    assert (memory.looked_up[3].right, memory.looked_up[3].trials) == (2, 2)
    assert (memory.sparse.right, memory.sparse.trials) == (1, 2)


def test_a_branch_that_was_not_reached_teaches_nothing_about_the_sparse_model() -> None:
    drafter, context = begin([1, 2, 3, 1, 2, 3], cycle(3), lookup_length=2, sparse_length=2)
    draft = drafter.propose(context)
    observe(drafter, context, draft, (0,))
    memory = context.memory
    assert (memory.looked_up[3].right, memory.looked_up[3].trials) == (1, 2)
    assert memory.sparse.trials == 0


def test_layers_that_there_are_not_are_refused() -> None:
    with pytest.raises(UserError, match=r"skip_mlp=\[9\]"):
        begin([1, 2], skip_mlp=[9])
    with pytest.raises(UserError, match="ngram_min=4"):
        CascadeConfig(ngram_min=4)
