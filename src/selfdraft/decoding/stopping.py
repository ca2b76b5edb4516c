"""Decide where an answer ends: at an end of sequence, a stop string, or the length limit.

A step writes several tokens at once, so an answer may end within them. Tokens after the end are neither kept nor
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from selfdraft.core.errors import UserError

POSITIONS = "positions"  # the reason of an answer that ended because the model had no more positions
BYTES_A_CHARACTER = 4  # a byte-level token may hold as little as a quarter of a character


@dataclass(frozen=True)
class Stopping:
    """End of sequence, stop strings and length. The token that ends an answer is its last one; later ones are dropped.

    Attributes:
        eos: token ids that end an answer. The one that ends it is emitted and counted.
        max_new_tokens: the longest answer, in tokens.
        strings: texts that end an answer, even if they extend over several tokens.
        decode: converts token ids to text; needed for `strings`.
        criterion: a further condition: whether an answer, up to and including a token, ends with it.
        past_positions: go on after the model's last position, as transformers' `generate` does.
        full: why an answer of `max_new_tokens` ends: `length`, or `positions` if the model had no positions for more.
    """

    eos: frozenset[int]
    max_new_tokens: int
    strings: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    criterion: Callable[[Sequence[int]], bool] | None = None
    past_positions: bool = False
    full: str = "length"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")

    def within(self, room: int) -> Stopping:
        """Return the same rules for answers of at most `room` tokens, the number of positions left in the model."""
        if self.past_positions or room >= self.max_new_tokens:
            return self
        return replace(self, max_new_tokens=room, full=POSITIONS)

    def cut(self, output: Sequence[int], tokens: Sequence[int]) -> tuple[list[int], str]:
        """Return those of `tokens` that are emitted after `output`, and why the answer ends there.

        Args:
            output: the answer so far.
            tokens: the tokens that a step would add.

        Returns:
            The tokens, and the reason (see `Generation.ended`), which is empty if the answer goes on.
        """
        kept: list[int] = []
        for token in tokens[: self.max_new_tokens - len(output)]:
            kept.append(token)
            if token in self.eos:
                return kept, "eos"
            if self.strings and self._holds_stop_string(output, kept):
                return kept, "stop string"
            if self.criterion is not None and self.criterion([*output, *kept]):
                return kept, "criterion"
        return kept, self.full if len(output) + len(kept) >= self.max_new_tokens else ""

    def _holds_stop_string(self, output: Sequence[int], kept: Sequence[int]) -> bool:
        """Return whether a stop string has just been completed. Only the tokens that it can extend over are decoded."""
        assert self.decode is not None
        reach = BYTES_A_CHARACTER * (max(map(len, self.strings)) + 1)
        tail = [*output[-reach:], *kept][-reach:]
        text = self.decode(tail)
        return any(string in text for string in self.strings)
