"""Invented decodings, for ratios worked out by hand."""

from __future__ import annotations

from selfdraft.core.counts import Counts
from selfdraft.decoding.record import Generation


def made_up(seconds: float, tokens: int, forwards: int) -> Generation:
    """Return a decoding with these numbers of tokens, forwards and seconds."""
    generation = Generation([1], output=list(range(tokens)), counts=Counts(new_tokens=tokens, target_forwards=forwards))
    generation.clock.seconds |= {"verify": seconds, "prefill": 100.0}  # which is no decoding
    return generation
