"""Replays of recorded texts, with every number worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from selfdraft.core.costs import CostCurve
from selfdraft.core.replay import Trace, acceptance_by_depth, agreement, best_choice, walk

FLAT = CostCurve((1, 100), (1.0, 1.0))


def trace(agrees: str, confidence: list[float] | None = None) -> Trace:
    flags = np.array([c == "1" for c in agrees])
    return Trace(flags, np.ones(len(flags)) if confidence is None else np.array(confidence))


def test_a_replay_emits_the_accepted_tokens_and_one_bonus() -> None:
    # Three drafted at 0 (two right), three at 3 (none), three at 4 (three), one at 8 (of two tokens left, one).
    done = walk([trace("1100111111")], draft_length=3, min_confidence=0.0)
    assert (done.tokens, done.drafted, done.verified) == (10, 10, [0, 1, 0, 3])
    assert done.seconds(FLAT, draft_s=0.5) == pytest.approx(4 + 5)
    assert done.speedup(FLAT, draft_s=0.5) == pytest.approx(10 / 9)


def test_a_draft_ends_after_the_first_token_below_the_threshold() -> None:
    unsure = trace("111111", [0.9, 0.1, 0.9, 0.9, 0.9, 0.9])
    done = walk([unsure], draft_length=4, min_confidence=0.5)
    assert done.verified == [0, 0, 2, 0, 0]  # two at 0, of which the second is the unsure one; two of three left at 3
    assert done.tokens == 6


def test_the_last_token_of_a_text_is_never_drafted() -> None:
    assert walk([trace("1")], 3, 0.0).verified == [1, 0, 0, 0]


def test_agreement_and_depths() -> None:
    traces = [trace("1101"), trace("11")]
    assert agreement(traces) == pytest.approx(5 / 6)
    assert acceptance_by_depth(traces, 3) == pytest.approx([5 / 6, 2 / 6, 0])


def test_the_best_choice_drafts_longer_if_drafting_is_cheaper() -> None:
    always = [trace("1" * 100)]
    assert best_choice(always, FLAT, draft_s=0.0).draft_length == 12
    steep = CostCurve((1, 2), (1.0, 3.0))
    assert best_choice(always, steep, draft_s=0.5).draft_length == 1


def test_a_confidence_threshold_is_chosen_only_if_it_pays() -> None:
    mixed = [trace("1111000000" * 5, ([0.9] * 4 + [0.1] * 6) * 5)]
    free = best_choice(mixed, FLAT, draft_s=0.3)
    assert (free.min_confidence > 0, free.draft_length > 1) == (True, True)
    assert best_choice(mixed, FLAT, draft_s=0.3, confidence_s=10.0).min_confidence == 0
