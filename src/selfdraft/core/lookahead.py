"""The 2-D window of lookahead decoding, and the pool of n-grams that it fills (Fu et al. 2024, arXiv 2402.02057).

The window is a Jacobi iteration that remembers: row 0 is the oldest iterate, each row below was predicted from the one
above it. So every column, read downwards, is an n-gram that the model itself has written.

Shapes: w columns, f + 1 rows; N tokens an n-gram. Column 0 of row 0 is the root, which is no node of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


class NgramPool:
    """Per first token, the latest n-grams that began with it: at most `limit`, the least recently seen leaves first."""

    def __init__(self, limit: int, earlier: NgramPool | None = None) -> None:
        """Empty.

        Args:
            earlier: what other texts have left, behind what this one knows; it takes in all that this one does.
        """
        self.limit, self.earlier = limit, earlier
        self._tails: dict[int, dict[tuple[int, ...], None]] = {}  # a dict is an ordered set: oldest first

    def add(self, ngram: Sequence[int]) -> None:
        """Take in an n-gram, or make a known one the latest."""
        first, *rest = ngram
        tails, tail = self._tails.setdefault(first, {}), tuple(rest)
        tails.pop(tail, None)
        tails[tail] = None
        if len(tails) > self.limit:
            del tails[next(iter(tails))]
        if self.earlier is not None:
            self.earlier.add(ngram)

    def add_text(self, text: Sequence[int], n: int) -> None:
        """Take in every n-gram of a text, the last one as the latest."""
        for start in range(len(text) - n + 1):
            self.add(text[start : start + n])

    def after(self, first: int) -> list[tuple[int, ...]]:
        """What followed a token, the latest first."""
        found = dict.fromkeys(reversed(self._tails.get(first, {})))
        if self.earlier is not None:
            found |= dict.fromkeys(self.earlier.after(first))
        return list(found)[: self.limit]

    def __len__(self) -> int:
        return sum(map(len, self._tails.values()))


@lru_cache(maxsize=256)
def window_parents(width: int, depth: int) -> Tensor:
    """The parents of a window's nodes, row by row: row 0 is a chain, every other node hangs under the one above it.

    So row 0's column j stands j positions behind the root, and row l's column j stands j + l behind it, each seeing
    row 0 up to its column and the rows above: the paper's mask and positions.

    Args:
        width: w, counting the root as row 0's column 0.
        depth: f, the number of rows below row 0.

    Returns:
        (w - 1 + f * w,) int64.
    """
    first = torch.arange(-1, width - 1)  # of row 1, whose column 0 hangs under the root, and of row 0 without its end
    below = torch.arange(width - 1, width - 1 + max(depth - 1, 0) * width)
    return torch.cat([first[:-1], *([first] if depth else []), below])


class Window:
    """The iterates of one request: row 0, then up to N - 2 rows below it, each one prediction further.

    Attributes:
        rows: row 0 (w - 1,), from its column 1 on, then rows of (w,). Empty where no column is left.
    """

    def __init__(self, first: Sequence[int], n: int) -> None:
        """Begin with row 0 alone: W + N - 3 tokens, of which N - 2 steps of warming up use up all but W - 1."""
        self.n = n
        self.rows = [torch.as_tensor(first, dtype=torch.long)]

    @property
    def width(self) -> int:
        """w: columns, the root's included."""
        return len(self.rows[0]) + 1 if self.rows else 0

    @property
    def tokens(self) -> Tensor:
        """(m,) the window's nodes, row by row."""
        return torch.cat(self.rows) if self.rows else torch.empty(0, dtype=torch.long)

    @property
    def parents(self) -> Tensor:
        """(m,) among themselves."""
        return window_parents(self.width, len(self.rows) - 1)

    @property
    def front(self) -> Tensor:
        """(w,) the nodes whose predictions are the next row: the last row, or the root (-1) and row 0."""
        count = sum(map(len, self.rows))
        return torch.arange(count - self.width, count)

    def narrow(self, deepest: int) -> None:
        """Drop the columns that reach more than `deepest` positions behind the root: nobody will ever emit them."""
        width = min(self.width, deepest - len(self.rows) + 2)
        self.rows = [self.rows[0][: width - 1], *(row[:width] for row in self.rows[1:])] if width > 0 else []

    def advance(self, root: int, predicted: Tensor) -> list[list[int]]:
        """One step on: the predicted row comes in, and, once the window is full, the oldest row goes out.

        Args:
            root: the token that the window was forwarded behind. predicted: (w,) after the nodes of `front`.

        Returns:
            The n-gram of every column, or none while the window is filling.
        """
        if len(self.rows) < self.n - 1:
            # Everything moves one position to the left of where it was predicted: column 0 falls behind the root.
            filled = [*(row[1:] for row in self.rows), predicted[1:]]
            self.rows = filled if self.width > 1 else []
            return []
        columns = torch.stack([torch.cat([torch.tensor([root]), self.rows[0]]), *self.rows[1:], predicted], dim=1)
        below = [*self.rows[1:], predicted]
        self.rows = [below[0][1:], *below[1:]]
        return columns.tolist()
