"""The 2-D window of lookahead decoding, and the pool of n-grams that it fills (Fu et al. 2024, arXiv 2402.02057).

The window is a Jacobi iteration that keeps its last iterates: row 0 is the oldest one, and each row was predicted from
the one above it. So every column, read downwards, is an n-gram that the model itself has written. The pool keeps these
n-grams. When the text later arrives at the first token of one, the rest of it is drafted.

Shapes: w columns, f + 1 rows; N tokens per n-gram. Column 0 of row 0 is the root, which is not a node of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


class NgramPool:
    """For each first token, the latest n-grams that begin with it: at most `limit`; the least recent is dropped."""

    def __init__(self, limit: int, earlier: NgramPool | None = None) -> None:
        """Make an empty pool.

        Args:
            limit: n-grams kept for each first token.
            earlier: a pool of other texts. Its n-grams come after this pool's own; each addition is made to both.
        """
        self.limit, self.earlier = limit, earlier
        self._tails: dict[int, dict[tuple[int, ...], None]] = {}  # a dict is an ordered set: oldest first

    def add(self, ngram: Sequence[int]) -> None:
        """Add an n-gram, or make a known one the latest."""
        first, *rest = ngram
        tails, tail = self._tails.setdefault(first, {}), tuple(rest)
        tails.pop(tail, None)
        tails[tail] = None
        if len(tails) > self.limit:
            del tails[next(iter(tails))]
        if self.earlier is not None:
            self.earlier.add(ngram)

    def add_text(self, text: Sequence[int], n: int) -> None:
        """Add every n-gram of a text, the last one as the latest."""
        for start in range(len(text) - n + 1):
            self.add(text[start : start + n])

    def after(self, first: int) -> list[tuple[int, ...]]:
        """Return the other tokens of the n-grams that begin with `first`, the latest n-gram first."""
        found = dict.fromkeys(reversed(self._tails.get(first, {})))
        if self.earlier is not None:
            found |= dict.fromkeys(self.earlier.after(first))
        return list(found)[: self.limit]

    def __len__(self) -> int:
        return sum(map(len, self._tails.values()))


@lru_cache(maxsize=256)
def window_parents(width: int, depth: int) -> Tensor:
    """Return the parents of a window's nodes, row by row: row 0 is a chain, other nodes are under the one above them.

    So column j of row l is j + l positions after the root. It sees row 0 up to column j, and its own column in the rows
    above it. These are the paper's mask and positions.

    Args:
        width: w, counting the root as row 0's column 0.
        depth: f, the number of rows below row 0.

    Returns:
        (w - 1 + f * w,) int64.
    """
    # The parents of row 1, whose column 0 is under the root. Without the last one, they are the parents of row 0.
    first = torch.arange(-1, width - 1)
    below = torch.arange(width - 1, width - 1 + max(depth - 1, 0) * width)
    return torch.cat([first[:-1], *([first] if depth else []), below])


class Window:
    """The iterates of one request: row 0, then up to N - 2 rows below it, each one prediction further.

    Attributes:
        rows: row 0 (w - 1,), from its column 1 on, then rows of (w,). Empty where no column is left.
    """

    def __init__(self, first: Sequence[int], n: int) -> None:
        """Begin with row 0 only, of W + N - 3 tokens. Each of N - 2 warm-up steps uses one, so W - 1 are left."""
        self.n = n
        self.rows = [torch.as_tensor(first, dtype=torch.long)]

    @property
    def width(self) -> int:
        """Number of columns w, including the root's."""
        return len(self.rows[0]) + 1 if self.rows else 0

    @property
    def tokens(self) -> Tensor:
        """(m,) tokens of the window's nodes, row by row."""
        return torch.cat(self.rows) if self.rows else torch.empty(0, dtype=torch.long)

    @property
    def parents(self) -> Tensor:
        """(m,) parents of the window's nodes, numbered within the window; -1 for the root."""
        return window_parents(self.width, len(self.rows) - 1)

    @property
    def front(self) -> Tensor:
        """(w,) the nodes whose predictions are the next row: the last row, or the root (-1) and row 0."""
        count = sum(map(len, self.rows))
        return torch.arange(count - self.width, count)

    def narrow(self, deepest: int) -> None:
        """Drop the columns that reach more than `deepest` positions after the root, which can never be emitted."""
        width = min(self.width, deepest - len(self.rows) + 2)
        self.rows = [self.rows[0][: width - 1], *(row[:width] for row in self.rows[1:])] if width > 0 else []

    def advance(self, root: int, predicted: Tensor) -> list[list[int]]:
        """Move on by one step: add the predicted row and, once the window is full, drop the oldest row.

        Args:
            root: the token after which the window was forwarded.
            predicted: (w,) predictions after the nodes of `front`.

        Returns:
            The n-gram of every column; an empty list while the window is filling.
        """
        if len(self.rows) < self.n - 1:
            # The window moves on by one position, so every row loses its column 0.
            filled = [*(row[1:] for row in self.rows), predicted[1:]]
            self.rows = filled if self.width > 1 else []
            return []
        columns = torch.stack([torch.cat([torch.tensor([root]), self.rows[0]]), *self.rows[1:], predicted], dim=1)
        below = [*self.rows[1:], predicted]
        self.rows = [below[0][1:], *below[1:]]
        return columns.tolist()
