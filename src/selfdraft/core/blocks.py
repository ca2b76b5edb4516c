"""Make the first guesses of a block of tokens, which Jacobi drafting then verifies and refines.

How a block begins matters most: without training, refining adds little (see experiments/jacobi_inits).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfdraft.core.ngrams import NgramIndex, random_prompt_tokens

Kind = tuple[str, int, int]
"""How a block was made, for instance ("ngram", 3, 0). Blocks of one kind should be right about equally often."""

INITS = ("prompt_random", "repeat_last", "pad", "ngram", "previous_tail")
NGRAM_MIN, NGRAM_MAX = 1, 3  # for init=ngram: the defaults of prompt lookup, so that the two can be compared


class BlockInit:
    """Makes the initial guesses of one request, in one of these ways (`INITS`):

    * `prompt_random`: tokens drawn from the prompt.
    * `pad`: the padding token.
    * `ngram`: the tokens that followed an earlier occurrence of the last n-gram; after those, as repeat_last.
    * `repeat_last`, `previous_tail`: the last known token, repeated; carried-over guesses count as known.
    """

    def __init__(self, kind: str, prompt: Sequence[int], pad_id: int, rng: np.random.Generator) -> None:
        self.kind, self.prompt, self.pad_id, self.rng = kind, list(prompt), pad_id, rng
        self.index = NgramIndex(NGRAM_MIN, NGRAM_MAX)

    def filled(self, text: Sequence[int], carried: list[int], width: int) -> list[int]:
        """Return the carried guesses for the positions after `text`, filled up to `width` tokens."""
        missing = width - len(carried)
        if missing <= 0:
            return carried[:width]
        if self.kind == "prompt_random":
            return carried + random_prompt_tokens(self.prompt, missing, self.rng)
        if self.kind == "pad":
            return carried + [self.pad_id] * missing
        if self.kind == "ngram" and not carried:
            carried = next(iter(self._continuations(text, width)), [])
        return _stretched(carried, text[-1], width)

    def others(self, text: Sequence[int], first: list[int], count: int) -> list[list[int]]:
        """Return `count` blocks to try in addition to `first`, of the same width.

        With `ngram` these are continuations after n-grams of other lengths. If there are too few of them, and with
        every other init, blocks are filled with tokens drawn from the prompt.
        """
        width, found = len(first), []
        if self.kind == "ngram" and count:
            blocks = [_stretched(each, text[-1], width) for each in self._continuations(text, width)]
            found = [block for i, block in enumerate(blocks) if block != first and block not in blocks[:i]][:count]
        return found + [random_prompt_tokens(self.prompt, width, self.rng) for _ in range(count - len(found))]

    def blocks(
        self, text: Sequence[int], carried: list[int], passes: int, width: int, count: int
    ) -> dict[Kind, list[int]]:
        """Return `count` blocks of `width` tokens to try, by their kind.

        These are the one of `filled`, of kind ("filled", passes, 0), and those of `others`, ("other", 0, number).
        """
        first = self.filled(text, carried, width)
        others = self.others(text, first, count - 1)
        return {("filled", passes, 0): first} | {("other", 0, number): each for number, each in enumerate(others)}

    def beginnings(
        self, text: Sequence[int], carried: list[int], passes: int, width: int, count: int
    ) -> dict[Kind, list[int]]:
        """Return blocks of up to `width` tokens to try, by their kind, for a draft that is cut to what pays.

        With `ngram` these are up to `count` continuations of n-grams, of kind ("ngram", matched tokens, number of
        better matches), and then the `carried` guesses, ("carried", passes, 0). None of them is filled up with other
        tokens, which would hardly be right. With every other init they are those of `blocks`.
        """
        if not width:
            return {}
        if self.kind != "ngram":
            return self.blocks(text, carried, passes, width, count)
        self.index.extend(text[len(self.index) :])
        matches = enumerate(self.index.matches(width, count))
        found: dict[Kind, list[int]] = {("ngram", matched, rank): tokens for rank, (matched, tokens) in matches}
        return found | ({("carried", passes, 0): carried[:width]} if carried else {})

    def _continuations(self, text: Sequence[int], width: int) -> list[list[int]]:
        self.index.extend(text[len(self.index) :])
        return self.index.continuations(width)


def _stretched(block: list[int], last: int, width: int) -> list[int]:
    """Return the block with its last token (`last` if it is empty) repeated up to `width` tokens."""
    return block + [block[-1] if block else last] * (width - len(block))
