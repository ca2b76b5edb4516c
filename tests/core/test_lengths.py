"""Draft length rules: when drafting stops."""

from __future__ import annotations

import itertools
import operator

import pytest

from selfdraft.core.costs import CostCurve
from selfdraft.core.lengths import AdaptiveThreshold, Calibration, ExpectedGain, Threshold, best_speedup


def test_a_threshold_looks_at_the_last_token_only() -> None:
    rule = Threshold(0.5)
    assert rule.goes_on([0.1, 0.5]) and not rule.goes_on([0.9, 0.4])
    assert rule.needs_confidence


def test_a_threshold_of_zero_never_stops() -> None:
    rule = Threshold(0.0)
    assert rule.goes_on([]) and not rule.needs_confidence


def test_the_adaptive_threshold_follows_the_paper_s_update() -> None:
    """From 0.6 by 0.01, up after too little acceptance and down after enough, smoothed by 0.9."""
    rule = AdaptiveThreshold()
    rule.learn([0.9, 0.9], 0)  # the rate falls from 0.9 to 0.45
    assert rule.threshold == pytest.approx(0.9 * 0.6 + 0.1 * 0.61)
    before = rule.threshold
    rule.learn([0.9, 0.9], 2)  # 0.725
    rule.learn([0.9, 0.9], 2)  # 0.8625
    assert rule.threshold > before
    before = rule.threshold
    rule.learn([0.9, 0.9], 2)  # 0.93
    assert rule.threshold == pytest.approx(0.9 * before + 0.1 * (before - 0.01))
    before = rule.threshold
    rule.learn([], 0)  # nothing was drafted: nothing is learnt
    assert rule.threshold == before
    assert rule.goes_on([rule.threshold]) and not rule.goes_on([rule.threshold - 1e-6])


def test_a_calibration_starts_at_the_confidence_and_converges_to_the_observed_rate() -> None:
    calibration = Calibration()
    assert calibration(0.97) == pytest.approx(0.95) and calibration(1.0) == calibration(0.97)
    assert calibration.reaches([0.97, 0.52]) == pytest.approx([0.95, 0.95 * 0.55])
    for _ in range(1000):
        calibration.learn([0.97, 0.52, 0.3], 1)  # the second is never accepted; nothing is known about the third
    assert calibration(0.97) == pytest.approx(1.0, abs=0.01)
    assert calibration(0.52) == pytest.approx(0.0, abs=0.01)
    assert calibration(0.3) == pytest.approx(0.35)


def test_expected_gain_continues_while_tokens_per_second_rise() -> None:
    """Against the rate worked out for every length."""
    full = CostCurve((1, 2, 40), (1.0, 1.1, 8.0))
    for seconds in (0.05, 0.3, 0.8):
        for confidence in (0.25, 0.75, 0.95):
            rule = ExpectedGain(full, seconds)
            rates = [
                (1 + sum(confidence**d for d in range(1, n + 1))) / (n * seconds + full(n + 1)) for n in range(1, 30)
            ]
            best = rates.index(max(rates)) + 1
            n = 1
            while n < 29 and rule.goes_on([confidence] * n):
                n += 1
            assert n == best


@pytest.mark.parametrize("cost", [0.01, 0.04, 0.2])
@pytest.mark.parametrize("confidences", [[0.45], [0.95, 0.65]])
def test_the_number_of_leaves_gives_the_most_tokens_per_second(confidences: list[float], cost: float) -> None:
    """Against the rate of every number of them; before anything is learned, a bin's middle is what it says."""
    full, draft, size = CostCurve((1, 101), (1.0, 1.0 + 100 * cost)), 0.15, 1 + len(confidences)
    rivals = [0.2, 0.1, 0.05, 0.02, 0.01]
    above = confidences[0] if len(confidences) == 2 else 1.0
    chain = 1 + sum(itertools.accumulate(confidences, operator.mul))
    rates = [
        (chain + above * sum(rivals[:n])) / (len(confidences) * draft + full(size + n)) for n in range(len(rivals) + 1)
    ]
    leaves = ExpectedGain(full, draft).leaves(confidences, lambda: rivals, size, sample=False)
    assert leaves == rates.index(max(rates))


def test_the_best_speedup_is_that_of_the_best_length() -> None:
    flat = CostCurve((1, 100), (1.0, 1.0))
    assert best_speedup(1.0, 0.0, flat, 5) == pytest.approx(6.0)
    assert best_speedup(0.0, 0.0, flat, 5) == pytest.approx(1.0)
    assert best_speedup(0.5, 0.25, flat, 1) == pytest.approx(1.5 / 1.25)
    assert best_speedup(0.5, 0.25, flat, 9) == pytest.approx(max(1.5 / 1.25, 1.75 / 1.5))


def test_expected_gain_verifies_as_many_tokens_as_pay() -> None:
    """Against the rate of every length of the finished chain."""
    full = CostCurve((1, 2, 3, 40), (1.0, 1.3, 1.7, 20.0))
    for confidences in ([0.1], [0.45], [0.9], [0.9, 0.9], [0.9, 0.1], [0.1, 0.9], [0.75, 0.65, 0.95]):
        rule = ExpectedGain(full, 0.1)
        reached = rule.calibration.reaches(confidences)
        drafting = 0.1 * len(confidences)
        rates = [(1 + sum(reached[:n])) / (drafting + full(n + 1)) for n in range(len(confidences) + 1)]
        assert rule.verified(confidences) == rates.index(max(rates)), confidences
    assert Threshold(0.5).verified([0.9, 0.1]) == 2  # other rules verify all
