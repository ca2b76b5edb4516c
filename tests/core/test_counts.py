"""Counts: what was offered and accepted at every depth, step after step."""

from __future__ import annotations

import numpy as np

from selfdraft.core.counts import Counts


def test_a_depth_is_accepted_where_the_emitted_path_reached_it() -> None:
    counts = Counts()
    counts.record_draft([True, True, True], 2)
    counts.record_draft([True], 1)
    counts.record_draft([], 0)
    counts.record_draft([True, True], 0)
    assert counts.acceptance_by_depth() == [
        {"offered": 3, "accepted": 2},
        {"offered": 2, "accepted": 1},
        {"offered": 1, "accepted": 0},
    ]


def test_a_depth_with_only_probes_is_not_offered() -> None:
    counts = Counts()
    counts.record_draft([False, True], 0)
    assert counts.acceptance_by_depth() == [{"offered": 0, "accepted": 0}, {"offered": 1, "accepted": 0}]


def test_an_empty_draft_counts_nothing() -> None:
    assert Counts().acceptance_by_depth() == []
    counts = Counts()
    counts.record_draft([], 0)
    assert counts.acceptance_by_depth() == []


def test_counts_add_up_in_any_order() -> None:
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 9, size=60)
    accepted = [int(rng.integers(0, d + 1)) for d in deep]
    counts = Counts()
    for d, a in zip(deep, accepted, strict=True):
        counts.record_draft([True] * int(d), a)
    assert counts.offered == [int((deep >= d).sum()) for d in range(1, 9)]
    assert counts.accepted == [sum(a >= d for a in accepted) for d in range(1, 9)]


def test_two_counts_do_not_share_lists() -> None:
    one, other = Counts(), Counts()
    one.record_draft([True], 1)
    assert other.offered == []
