"""A rate from counts worked out by hand."""

from __future__ import annotations

import pytest

from selfdraft.core.rates import Rate


def test_a_rate_starts_at_its_prior_learns_and_forgets() -> None:
    rate = Rate(0.5, weight=2.0)
    assert rate() == 0.5
    rate.learn(accepted=2, offered=4)  # two right, one wrong; the fourth says nothing
    assert rate() == pytest.approx((2 + 1) / (3 + 2))
    rate.learn(accepted=3, offered=3)
    assert rate() == pytest.approx((5 + 1) / (6 + 2))
    rate.fade(0.0)
    assert rate() == 0.5


def test_a_rate_never_reaches_1() -> None:
    rate = Rate(0.5)
    rate.learn(10_000, 10_000)
    assert rate() == 0.99
