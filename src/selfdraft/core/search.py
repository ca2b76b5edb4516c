"""Search which sublayers to skip while drafting, one candidate at a time, while decoding goes on.

This is SWIFT's procedure (Xia et al. 2025, arXiv 2410.06916): most candidates are random, and at intervals a Gaussian
process names the most promising one. A candidate is a set of sublayers of all layers except the first and the last. The
caller scores each candidate and reports the score.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from selfdraft.core.skipset import SkipSet

NOISE, KAPPA = 1e-2, 2.5  # noise of the process, factor of its upper confidence bound; as in the paper's code
LENGTH_SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)  # the one with the highest likelihood is used
POOL = 1000  # random candidates, of which the one with the highest bound is tried


class SkipSearch:
    """Searches sets of exactly ``int(2 (layers - 2) ratio)`` sublayers.

    Attributes:
        best, score: the incumbent and its score; at first an even spread with score 0.
        history: every scored candidate with its score, in order.
        stale: number of candidates scored since the incumbent last changed.
    """

    def __init__(self, layers: int, ratio: float, *, bayes_interval: int = 25, neighbours: bool = False) -> None:
        """Start with an even spread as the incumbent.

        Args:
            layers: number of the model's layers.
            ratio: share of the sublayers of the inner layers that are skipped.
            bayes_interval: n, if the Gaussian process is to propose every n-th candidate.
            neighbours: make the other candidates from the incumbent, with one or two sublayers exchanged, instead of at
                random (our addition to SWIFT).
        """
        self.inner = max(layers - 2, 0)
        self.count = int(2 * self.inner * ratio)
        self.bayes_interval, self.neighbours = bayes_interval, neighbours
        self.best, self.score = SkipSet.spread(layers, ratio), 0.0
        self.history: list[tuple[SkipSet, float]] = []
        self.stale = 0

    @property
    def is_possible(self) -> bool:
        """Whether there is more than one possible candidate."""
        return 0 < self.count < 2 * self.inner

    def candidate(self, rng: np.random.Generator) -> SkipSet:
        """Return the next candidate to score."""
        if (len(self.history) + 1) % self.bayes_interval == 0:
            return self._hoped_for(rng)
        if self.neighbours:
            return self._neighbour(rng)
        return self._set(self._random(rng))

    def tell(self, candidate: SkipSet, score: float) -> bool:
        """Record a candidate's score, and return whether it is the new incumbent."""
        self.history.append((candidate, score))
        self.stale += 1
        if score > self.score:
            self.best, self.score, self.stale = candidate, score, 0
            return True
        return False

    def _random(self, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(2 * self.inner, size=self.count, replace=False)

    def _neighbour(self, rng: np.random.Generator) -> SkipSet:
        inside = self._vector(self.best) > 0
        for _ in range(int(rng.integers(1, 3))):
            inside[rng.choice(np.flatnonzero(inside))] = False
            inside[rng.choice(np.flatnonzero(~inside))] = True
        return self._set(np.flatnonzero(inside))

    def _hoped_for(self, rng: np.random.Generator) -> SkipSet:
        """Return the candidate with the highest upper confidence bound in a random pool."""
        if not self.history:
            return self._set(self._random(rng))
        pool = np.zeros((POOL, 2 * self.inner))
        for row in pool:
            row[self._random(rng)] = 1
        scored = np.stack([self._vector(candidate) for candidate, _ in self.history])
        bound = upper_confidence(scored, np.array([score for _, score in self.history]), pool)
        return self._set(np.flatnonzero(pool[bound.argmax()]))

    def _set(self, sublayers: np.ndarray) -> SkipSet:
        """Return the skip set; sublayers 0 to inner - 1 are the attentions of layers 1, 2, …, the others their MLPs."""
        ids = [int(i) for i in sublayers]
        attention = frozenset(1 + i for i in ids if i < self.inner)
        return SkipSet(attention, frozenset(1 + i - self.inner for i in ids if i >= self.inner))

    def _vector(self, skip: SkipSet) -> np.ndarray:
        vector = np.zeros(2 * self.inner)
        vector[[i - 1 for i in skip.attention] + [i - 1 + self.inner for i in skip.mlp]] = 1
        return vector


def upper_confidence(points: np.ndarray, scores: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Return (m,) mean + `KAPPA` standard deviations of a Gaussian process with a Matérn 5/2 kernel.

    Args:
        points: (n, d) tried points.
        scores: (n,) their scores; they are standardised, and so is the result.
        pool: (m, d) points to predict.
    """
    spread = scores.std() or 1.0
    y = (scores - scores.mean()) / spread
    distance, to_pool = cdist(points, points), cdist(pool, points)

    def fit(scale: float) -> tuple[float, tuple, np.ndarray]:
        factor = cho_factor(_matern(distance / scale) + NOISE * np.eye(len(y)), lower=True)
        weights = cho_solve(factor, y)
        return float(-0.5 * y @ weights - np.log(np.diag(factor[0])).sum()), factor, weights

    scale = max(LENGTH_SCALES, key=lambda s: fit(s)[0])
    _, factor, weights = fit(scale)
    k = _matern(to_pool / scale)
    variance = 1 - (k * cho_solve(factor, k.T).T).sum(1)
    return k @ weights + KAPPA * np.sqrt(np.clip(variance, 0, None))


def _matern(r: np.ndarray) -> np.ndarray:
    root = np.sqrt(5) * r
    return (1 + root + root**2 / 3) * np.exp(-root)
