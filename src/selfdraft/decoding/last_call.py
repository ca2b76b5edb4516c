"""What one call of `generate` with a `Drafting` has accepted, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfdraft.core.counts import Counts
from selfdraft.decoding.record import PHASES, Generation, PhaseClock

MAX_DEPTHS = 4  # depths whose acceptance `str` shows


@dataclass(frozen=True)
class LastCall:
    """Counts and times of one call, over all rows of its batch.

    Attributes:
        rows: number of answers.
        new_tokens: emitted tokens, including ends of sequences.
        target_forwards: full target forwards after the prefill, counted for each row that took part.
        offered: ``offered[d - 1]`` drafts had a candidate at depth d.
        accepted: ``accepted[d - 1]`` drafts were accepted up to depth d.
        seconds: by phase: `prefill`, then `draft`, `verify`, `commit` and `other`, and `decode`, the sum of these four.
            Preparing the model, which the first call does, is in none of them.
    """

    rows: int
    new_tokens: int
    target_forwards: int
    offered: tuple[int, ...]
    accepted: tuple[int, ...]
    seconds: dict[str, float]

    @staticmethod
    def of(generations: Sequence[Generation]) -> LastCall:
        """Return the sums over the answers of a call."""
        counts, clock = Counts(), PhaseClock()
        for generation in generations:
            counts.add(generation.counts)
            clock.add(generation.clock)
        seconds = {**{phase: clock.seconds[phase] for phase in PHASES}, "decode": clock.decode_s}
        return LastCall(
            rows=len(generations),
            new_tokens=counts.new_tokens,
            target_forwards=counts.target_forwards,
            offered=tuple(counts.offered),
            accepted=tuple(counts.accepted),
            seconds=seconds,
        )

    @property
    def tokens_per_forward(self) -> float:
        """Return the tokens that a row gained by a forward of the target; 1 without drafts."""
        return self.new_tokens / self.target_forwards if self.target_forwards else 0.0

    @property
    def acceptance(self) -> tuple[float, ...]:
        """Return, from depth 1, the share of drafts with a candidate at that depth that were accepted up to there."""
        return tuple(a / o if o else 0.0 for o, a in zip(self.offered, self.accepted, strict=True))

    def __str__(self) -> str:
        depths = [f"{share:.0%} at depth {d}" for d, share in enumerate(self.acceptance[:MAX_DEPTHS], start=1)]
        accepted = ", ".join(depths) or "nothing was drafted"
        took = {phase: f"{seconds:.3f} s" for phase, seconds in self.seconds.items()}
        return (
            f"{self.new_tokens} tokens in {self.target_forwards} forwards ({self.tokens_per_forward:.2f} per forward); "
            f"accepted: {accepted}; prefill {took['prefill']}, decode {took['decode']} "
            f"(draft {took['draft']}, verify {took['verify']})"
        )
