"""Find where the last few tokens of a text occurred earlier in it, and what followed there.

This is what prompt lookup drafts from. The index grows with the text, so a look-up does not scan it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from selfdraft.core.errors import UserError


class NgramIndex:
    """The positions after each n-gram of one growing text, for all sizes from `smallest` to `largest`.

    It is filled as tokens are committed, so that a lookup costs one dictionary access per size and no scan of the text.
    """

    def __init__(self, smallest: int, largest: int) -> None:
        self.smallest, self.largest = smallest, largest
        self._text: list[int] = []
        self._starts: dict[tuple[int, ...], list[int]] = {}  # ascending

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text. The n-grams that *end* the text are added only when a token follows them."""
        for token in tokens:
            end = len(self._text)
            for n in range(self.smallest, min(self.largest, end) + 1):
                self._starts.setdefault(tuple(self._text[end - n :]), []).append(end)  # continued there by this token
            self._text.append(int(token))

    def continuation(self, length: int) -> list[int]:
        """Return up to `length` tokens after the latest earlier occurrence of the longest last n-gram that has one."""
        return self.match(length)[1]

    def match(self, length: int) -> tuple[int, list[int]]:
        """Return the size of that longest n-gram, and its continuation; 0 and an empty list if none occurred before."""
        for n, starts in self._matching():
            return n, self._text[starts[-1] : starts[-1] + length]
        return 0, []

    def matches(self, length: int, most: int) -> list[tuple[int, list[int]]]:
        """Return up to `most` pairs as of `match`, with different first tokens: longest n-gram first, latest first."""
        found: dict[int, tuple[int, list[int]]] = {}  # by first token
        for n, starts in self._matching():
            for start in reversed(starts):
                if len(found) == most:
                    return list(found.values())
                if self._text[start] not in found:
                    found[self._text[start]] = n, self._text[start : start + length]
        return list(found.values())

    def continuations(self, length: int) -> list[list[int]]:
        """Return the latest continuation for every matching size, the longest n-gram first."""
        latest = dict.fromkeys(starts[-1] for _, starts in self._matching())
        return [self._text[start : start + length] for start in latest]

    def _matching(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (n, positions after earlier occurrences of the last n tokens), the largest matching n first."""
        for n in range(min(self.largest, len(self._text) - 1), self.smallest - 1, -1):
            if (starts := self._starts.get(tuple(self._text[-n:]))) is not None:
                yield n, starts

    def __len__(self) -> int:
        return len(self._text)


def random_prompt_tokens(prompt: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """Return `count` tokens drawn from the prompt: the cheapest guesses that are at least about the right topic."""
    return [int(token) for token in rng.choice(np.asarray(prompt), size=count)]


def refuse_sizes(ngram_min: int, ngram_max: int) -> None:
    """Refuse options whose smallest n-gram is larger than the largest.

    Raises:
        UserError: it is; the message names both options.
    """
    if ngram_min > ngram_max:
        raise UserError(f"drafter.ngram_min={ngram_min}: must be at most drafter.ngram_max={ngram_max}")
