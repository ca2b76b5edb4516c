"""A rate from counts worked out by hand."""

from __future__ import annotations

import pytest

from selfdraft.core.rates import Chances, Rate, lookup_chances


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


def test_chances_of_a_chain_separate_its_first_token_from_later_ones() -> None:
    chances = Chances(0.5, 0.8)
    assert chances.reached(3) == pytest.approx([0.5, 0.4, 0.32])
    for _ in range(40):
        chances.learn([1, 2, 3], [1, 2, 9, 4])  # the first is right, of the later ones every second
    first, second, third = chances.reached(3)
    assert first > 0.9 and second / first == pytest.approx(0.5, abs=0.05) and third < second
    unknown = Chances(0.5, 0.8)
    unknown.learn([], [1, 2])
    unknown.learn([1], [])
    assert unknown.reached(2) == pytest.approx([0.5, 0.4])
    for _ in range(400):
        chances.fade()
    assert chances.reached(2) == pytest.approx([0.5, 0.4], abs=0.01)


def test_a_match_of_more_tokens_is_surer_and_a_later_one_less_sure() -> None:
    assert lookup_chances(3, 0).first() > lookup_chances(1, 0).first() > lookup_chances(1, 1).first()
