"""Estimate how often each kind of guess is right, while decoding.

An estimate begins at a prior and follows what is observed. Older observations count less, because texts change.
"""

from __future__ import annotations

from collections.abc import Hashable


class Estimates:
    """A Beta posterior for each kind of guess; the prior chance counts as much as `strength` trials.

    Each further trial of a kind multiplies the weight of its older ones by `fading`, so that estimates follow the text.
    """

    def __init__(self, strength: float = 8.0, fading: float = 0.98) -> None:
        self.strength, self.fading = strength, fading
        self._counts: dict[Hashable, tuple[float, float]] = {}  # trials, hits

    def chance(self, kind: Hashable, prior: float) -> float:
        """Return the posterior mean chance of a guess of this kind whose own prior chance is `prior`."""
        trials, hits = self._counts.get(kind, (0.0, 0.0))
        return (self.strength * prior + hits) / (self.strength + trials)

    def observe(self, kind: Hashable, hit: bool) -> None:
        """Record whether a guess of this kind was right."""
        trials, hits = self._counts.get(kind, (0.0, 0.0))
        self._counts[kind] = self.fading * trials + 1.0, self.fading * hits + hit

    def fade(self, kind: Hashable, share: float) -> None:
        """Multiply the weight of a kind's trials by `share`. Without new trials its chance returns to the prior."""
        if kind in self._counts:
            trials, hits = self._counts[kind]
            self._counts[kind] = share * trials, share * hits
