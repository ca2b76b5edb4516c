"""Chains of guesses: what is learned of each kind, and how much of each pays."""

from __future__ import annotations

import pytest

from selfdraft.core.chains import Chains, Chances, lookup_chances
from selfdraft.core.costs import CostCurve


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


def test_of_kinds_that_are_right_more_is_drafted_than_of_those_that_are_wrong() -> None:
    costs = CostCurve((1, 2, 3, 9), (1.0, 1.2, 1.4, 8.0))
    chains: Chains[str] = Chains(lambda kind: Chances(0.5, 0.5))
    for _ in range(20):
        chains.found = {"good": [1, 2, 3], "bad": [9, 8, 7]}
        drafted = chains.paying(costs)
        chains.learn([1, 2, 5])
    assert drafted == [[1, 2], []]
    chains.found = {"new": [4]}
    assert chains.paying(CostCurve((1, 9), (1.0, 1.0))) == [[4]]
    chains.found = {}
    assert chains.paying(costs) == []
