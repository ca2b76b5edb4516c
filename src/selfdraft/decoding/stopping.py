"""When a request ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stopping:
    """End of sequence and length.

    Attributes:
        eos: ids that end an answer. The one that ended it is emitted and counted, nothing behind it.
        max_new_tokens: the longest answer.
    """

    eos: frozenset[int]
    max_new_tokens: int

    def within(self, room: int) -> Stopping:
        """The same, but for at most `room` tokens (what the model's positions leave)."""
        return replace(self, max_new_tokens=min(self.max_new_tokens, room))

    def cut(self, emitted: int, tokens: Sequence[int]) -> tuple[list[int], bool]:
        """What of `tokens` is emitted after `emitted` earlier ones, and whether the answer ends with it."""
        kept: list[int] = []
        for token in tokens[: self.max_new_tokens - emitted]:
            kept.append(token)
            if token in self.eos:
                return kept, True
        return kept, emitted + len(kept) >= self.max_new_tokens
