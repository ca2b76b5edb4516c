from __future__ import annotations

import pytest

from selfdraft.core.estimates import Estimates


def test_without_trials_the_estimate_is_the_prior() -> None:
    assert Estimates().chance("a", 0.3) == pytest.approx(0.3)


def test_trials_change_the_estimate_of_their_own_kind_only() -> None:
    estimates = Estimates(strength=2.0, fading=1.0)
    for hit in (True, True, False, True):
        estimates.observe("a", hit)
    assert estimates.chance("a", 0.5) == pytest.approx((1 + 3) / (2 + 4))
    assert estimates.chance("a", 0.0) == pytest.approx(3 / 6)  # the prior is each guess's own
    assert estimates.chance("b", 0.5) == 0.5


def test_old_trials_count_less() -> None:
    estimates = Estimates(strength=1.0, fading=0.5)
    for hit in (True, True, False):
        estimates.observe("a", hit)
    # trials 1, 1.5, 1.75; hits 1, 1.5, 0.75
    assert estimates.chance("a", 0.0) == pytest.approx(0.75 / 2.75)
    for _ in range(60):
        estimates.observe("a", False)
    assert estimates.chance("a", 1.0) == pytest.approx(1 / 3)  # two trials' worth is never exceeded
