"""Learning online how often a kind of guess is right: counts over a prior, old ones fading."""

from __future__ import annotations

from collections.abc import Hashable


class Estimates:
    """By kind of guess, a Beta posterior: the prior chance counts like `strength` trials, and every trial since.

    Each further trial of a kind multiplies what its older ones count by `fading`, so that estimates follow the text.
    """

    def __init__(self, strength: float = 8.0, fading: float = 0.98) -> None:
        self.strength, self.fading = strength, fading
        self._counts: dict[Hashable, tuple[float, float]] = {}  # trials, hits

    def chance(self, kind: Hashable, prior: float) -> float:
        """The posterior mean of a guess of this kind whose own prior chance is `prior`."""
        trials, hits = self._counts.get(kind, (0.0, 0.0))
        return (self.strength * prior + hits) / (self.strength + trials)

    def observe(self, kind: Hashable, hit: bool) -> None:
        """A guess of this kind was right, or was not."""
        trials, hits = self._counts.get(kind, (0.0, 0.0))
        self._counts[kind] = self.fading * trials + 1.0, self.fading * hits + hit

    def fade(self, kind: Hashable, share: float) -> None:
        """Let what is known of a kind count less: left alone, its chance returns to the prior."""
        if kind in self._counts:
            trials, hits = self._counts[kind]
            self._counts[kind] = share * trials, share * hits
