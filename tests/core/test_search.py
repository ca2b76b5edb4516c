"""The search for skip sets, on scores known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from selfdraft.core.search import KAPPA, SkipSearch, upper_confidence
from selfdraft.core.skipset import SkipSet


@pytest.mark.parametrize(("layers", "ratio", "count"), [(30, 0.45, 25), (30, 0.2, 11), (4, 0.5, 2), (3, 0.4, 0)])
def test_every_candidate_skips_the_paper_s_number_and_keeps_first_and_last_layer(
    layers: int, ratio: float, count: int
) -> None:
    for neighbours in (False, True):
        search = SkipSearch(layers, ratio, bayes_interval=4, neighbours=neighbours)
        rng = np.random.default_rng(0)
        assert len(search.best) == count and search.is_possible == (count > 0)
        for _ in range(9 if count else 0):
            candidate = search.candidate(rng)
            assert len(candidate) == count
            assert not {0, layers - 1} & (candidate.attention | candidate.mlp)
            search.tell(candidate, float(rng.random()))


def test_the_incumbent_is_the_best_scored_candidate_and_its_age_is_counted() -> None:
    search = SkipSearch(6, 0.5)
    sets = [SkipSet.of(6, [1, 2], [3, i]) for i in (1, 2, 4)]
    assert [search.tell(s, score) for s, score in zip(sets, (0.3, 0.3, 0.4), strict=True)] == [True, False, True]
    assert (search.best, search.score, search.stale) == (sets[2], 0.4, 0)
    assert not search.tell(sets[0], 0.1)
    assert search.stale == 1 and len(search.history) == 4


def test_neighbours_differ_from_the_incumbent_in_one_or_two_sublayers() -> None:
    search = SkipSearch(12, 0.5, bayes_interval=10**6, neighbours=True)
    rng, differing = np.random.default_rng(0), set()
    for _ in range(60):
        candidate = search.candidate(rng)
        differing.add(len(candidate.attention - search.best.attention) + len(candidate.mlp - search.best.mlp))
    assert differing <= {0, 1, 2} and {1, 2} <= differing


def test_the_upper_confidence_bound_equals_the_textbook_formula() -> None:
    """Against the formulas with an explicit inverse, at the likeliest of the length scales."""
    rng = np.random.default_rng(0)
    points, pool = rng.integers(0, 2, (12, 6)).astype(float), rng.integers(0, 2, (5, 6)).astype(float)
    scores = points @ np.array([3.0, 1, 0, 0, -2, 0]) + 0.1 * rng.random(12)

    def kernel(a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
        r = np.sqrt(5) * np.linalg.norm(a[:, None] - b[None], axis=-1) / scale
        return (1 + r + r**2 / 3) * np.exp(-r)

    y = (scores - scores.mean()) / scores.std()
    likeliest, expected = -np.inf, None
    for scale in (0.5, 1.0, 2.0, 4.0, 8.0):
        noisy = kernel(points, points, scale) + 1e-2 * np.eye(12)
        inverse, k = np.linalg.inv(noisy), kernel(pool, points, scale)
        likelihood = -0.5 * y @ inverse @ y - 0.5 * np.linalg.slogdet(noisy)[1]
        if likelihood > likeliest:
            likeliest = likelihood
            expected = k @ inverse @ y + KAPPA * np.sqrt(1 - np.einsum("ij,jk,ik->i", k, inverse, k))
    np.testing.assert_allclose(upper_confidence(points, scores, pool), expected, rtol=1e-6)


@pytest.mark.slow
def test_the_gaussian_process_finds_better_sets_than_random_search() -> None:
    """A score that adds up over sublayers: with every second candidate proposed, the best is better than by luck."""
    gains = np.random.default_rng(9).random(20)

    def found(bayes_interval: int, seed: int) -> float:
        search, rng = SkipSearch(12, 0.4, bayes_interval=bayes_interval), np.random.default_rng(seed)
        for _ in range(40):
            candidate = search.candidate(rng)
            search.tell(candidate, float(gains @ search._vector(candidate)))
        return search.score

    assert sum(found(2, seed) for seed in range(3)) > sum(found(10**6, seed) for seed in range(3))
