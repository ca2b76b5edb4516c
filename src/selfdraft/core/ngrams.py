"""Looking a context's last n-gram up in what was said before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfdraft.core.errors import UserError


class NgramIndex:
    """Where each n-gram of one growing text was last continued.

    Filled as tokens are committed, so that a lookup costs one dictionary access per n and no scan of the text
    (n-grams of all sizes between `smallest` and `largest`).
    """

    def __init__(self, smallest: int, largest: int) -> None:
        self.smallest, self.largest = smallest, largest
        self._text: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text. The n-grams that *end* with the text stay out until something follows them."""
        for token in tokens:
            end = len(self._text)
            for n in range(self.smallest, min(self.largest, end) + 1):
                self._latest[tuple(self._text[end - n :])] = end  # continued at `end` by this token
            self._text.append(int(token))

    def continuation(self, length: int) -> list[int]:
        """Up to `length` tokens that followed the latest earlier occurrence of the longest matching last n-gram."""
        return self.match(length)[1]

    def match(self, length: int) -> tuple[int, list[int]]:
        """The n of that longest n-gram, and its continuation; 0 and nothing where none was said before."""
        for n in range(min(self.largest, len(self._text) - 1), self.smallest - 1, -1):
            start = self._latest.get(tuple(self._text[-n:]))
            if start is not None:
                return n, self._text[start : start + length]
        return 0, []

    def continuations(self, length: int) -> list[list[int]]:
        """The same for every n that matches, the longest first."""
        sizes = range(min(self.largest, len(self._text) - 1), self.smallest - 1, -1)
        starts = [self._latest.get(tuple(self._text[-n:])) for n in sizes]
        return [self._text[start : start + length] for start in dict.fromkeys(starts) if start is not None]

    def __len__(self) -> int:
        return len(self._text)


def random_prompt_tokens(prompt: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """`count` tokens drawn from the prompt: the cheapest block that at least speaks about the right things."""
    return [int(token) for token in rng.choice(np.asarray(prompt), size=count)]


def refuse_sizes(ngram_min: int, ngram_max: int) -> None:
    """Refuse options of which the least n-gram is larger than the largest.

    Raises:
        UserError: naming both.
    """
    if ngram_min > ngram_max:
        raise UserError(f"drafter.ngram_min={ngram_min}: must be at most drafter.ngram_max={ngram_max}")
