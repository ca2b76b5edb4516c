"""Prompt lookup: its matches, its draft length, and what it learns from acceptance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from by_hand import ROOMY, begin, drafted, observe
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.drafters.base import Context
from selfdraft.drafters.prompt_lookup import PromptLookupConfig
from stub_target import StubTarget, successor


def lookup(text: Sequence[int], **options: int | bool) -> list[int]:
    return drafted(*begin(PromptLookupConfig(**options), text))


def test_lookup_drafts_the_continuation_of_the_last_match_up_to_its_length() -> None:
    text = [1, 2, 3, 4, 5, 6, 1, 2]
    assert lookup(text, draft_length=2) == [3, 4]
    assert lookup(text, draft_length=30, costs="flat") == [
        3,
        4,
        5,
        6,
        1,
        2,
    ]  # up to the end of the text: nothing follows there yet


def test_lookup_prefers_the_longest_then_the_latest_match() -> None:
    text = [1, 2, 10, 5, 2, 11, 6, 2, 12, 1, 2]
    assert lookup(text, draft_length=1) == [10]
    assert lookup(text, draft_length=1, ngram_max=1) == [12]


def test_lookup_drafts_several_candidates_with_different_first_tokens() -> None:
    text = [1, 2, 10, 5, 2, 11, 6, 2, 12, 2, 11, 8, 1, 2]
    for candidates, firsts in ((1, [10]), (2, [10, 11]), (3, [10, 11, 12]), (9, [10, 11, 12])):
        drafter, context = begin(PromptLookupConfig(candidates=candidates, draft_length=2, costs="flat"), text)
        tree = drafter.propose(context).tree
        assert tree.tokens[tree.parents < 0].tolist() == firsts  # the longest match, then the latest of shorter ones
    assert tree.tokens.tolist() == [10, 5, 11, 8, 12, 2]


def test_lookup_learns_which_candidate_is_right() -> None:
    """The second one always is: after a while only it is drafted, and one that is never right is not."""
    text = [1, 2, 10, 11, 2, 20, 21, 1, 2]
    target = StubTarget(successor)
    target.costs = CostCurve((1, 65), (1.0, 12.0))
    drafter, context = begin(PromptLookupConfig(candidates=2, draft_length=2), text, target=target)
    sizes = []
    for _ in range(60):
        tree = drafter.propose(context).tree
        sizes.append([int((tree.sees[:, tree.tokens == first]).sum()) for first in (10, 20)])
        observe(drafter, context, [20, 21], [20, 21, 63])
        del context.tokens[len(text) :]
        context.room = ROOMY
    assert sizes[0][0] > sizes[0][1] and sizes[-1] == [0, 2]


def test_lookup_drafts_nothing_without_a_long_enough_match() -> None:
    text = [1, 2, 3, 9, 2]
    assert lookup(text) == [3, 9, 2]
    assert lookup(text, ngram_min=2) == []
    assert lookup([1, 2, 3]) == []
    assert lookup([1]) == []


def test_lookup_also_searches_the_output() -> None:
    drafter, context = begin(PromptLookupConfig(draft_length=2), [1, 2, 3])
    assert drafted(drafter, context) == []
    context.tokens += [7, 8, 7]
    assert drafted(drafter, context) == [8, 7]
    context.tokens += [2]
    assert drafted(drafter, context) == [3, 7]  # and the prompt


def lengths(right: int, dearest: float, steps: int = 30) -> list[int]:
    """How much is drafted of one match, again and again, where so much of it is right and 65 tokens cost `dearest`."""
    text = [*range(1, 31), 1]
    target = StubTarget(successor)
    target.costs = CostCurve((1, 65), (1.0, dearest))
    drafter, context = begin(PromptLookupConfig(draft_length=8), text, target=target)
    found = []
    for _ in range(steps):
        block = drafted(drafter, context)
        found.append(len(block))
        observe(drafter, context, block, [*text[1 : 1 + right], *([63] * 9)][: len(block) + 1])
        del context.tokens[len(text) :]
        context.room = ROOMY
    return found


def test_lookup_drafts_more_after_right_drafts_and_stops_after_wrong_ones() -> None:
    right, wrong, two = (lengths(so_much, 8.0, 150) for so_much in (9, 0, 2))
    assert right == sorted(right) and right[-1] == 8 > right[0] > 0
    assert wrong.index(0) < 25 and sum(wrong) < sum(right) / 10
    assert not any(wrong[wrong.index(0) + 25 :])  # nor need it be tried: the text tells
    assert set(two[-10:]) <= {2, 3, 4}


def test_lookup_drafts_less_if_tokens_cost_more() -> None:
    first = [lengths(9, dearest, steps=1)[0] for dearest in (1.01, 2.0, 8.0, 60.0)]
    assert first == sorted(first, reverse=True) and first[0] == 8 and first[-1] == 0


def test_lookup_without_costs_drafts_its_maximum_length() -> None:
    text = [*range(1, 31), 1]
    drafter, context = begin(PromptLookupConfig(draft_length=8, costs="flat"), text)
    for _ in range(2):
        block = drafted(drafter, context)
        assert block == [2, 3, 4, 5, 6, 7, 8, 9]
        observe(drafter, context, block, [63] * 9)
        del context.tokens[len(text) :]


def test_lookup_refuses_a_shortest_match_above_the_longest() -> None:
    with pytest.raises(UserError, match=r"^drafter\.ngram_min=4: must be at most drafter\.ngram_max=3$"):
        PromptLookupConfig(ngram_min=4)


def test_lookup_keeps_the_texts_of_two_requests_apart() -> None:
    drafter, first = begin(PromptLookupConfig(), [1, 2, 1])
    second = Context(1, [5, 6, 5], 3, ROOMY, np.random.default_rng(0))
    drafter.start(second)
    assert [d.tree.tokens.tolist() for d in drafter.propose_batch([first, second])] == [[2, 1], [6, 5]]
