"""Jacobi iteration over a block of draft tokens (Santilli et al. 2023, arXiv 2305.10427).

One iteration: put guesses y at the next W positions, run one forward over all of them, and replace each guess by the
prediction made from the guesses before it. Every iteration makes at least one more token right, because the first guess
is predicted from the text alone. When nothing changes any more, y is the greedy continuation: the fixed point of
``y[i] = argmax p(. | prefix, y[:i])``.

Shapes: W tokens per block, k blocks tried at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def next_iterate(predictions: Tensor) -> Tensor:
    """Return the block after one more iteration, aligned with the block that was forwarded.

    Args:
        predictions: (W + 1,) argmax after the root and after each of the W block tokens.

    Returns:
        (W,) the refined block: position i gets the prediction that was made from the tokens before it.
    """
    return predictions[:-1]


def carried_block(predictions: Tensor, accepted: int) -> Tensor:
    """Return the guesses that a *fused* pass leaves for the next block, after `accepted` tokens and the bonus token.

    The predictions are for positions 1..W + 1 after the old root. The first ``accepted + 1`` of them are committed now,
    so the other W - accepted tokens are aligned with the positions after the new root.

    Args:
        predictions: (W + 1,) argmax after the root and after each of the W block tokens.
        accepted: how many block tokens were accepted.

    Returns:
        (W - accepted,) refined guesses for the positions after the new root.
    """
    return predictions[accepted + 1 :]


def by_block(after: Tensor, blocks: int) -> Tensor:
    """Regroup (k * W + 1, …) values of a tree as (k, W + 1, …): by block, after the root and each of its tokens."""
    root, rest = after[:1], after[1:].unflatten(0, (blocks, -1))
    return torch.cat([root.expand(blocks, *root.shape).clone(), rest], dim=1)


def is_fixed_point(block: Tensor, refined: Tensor) -> bool:
    """Return whether a further iteration would change nothing: the block is the target's own greedy continuation."""
    return bool((block == refined).all())


def sub_block_ends(width: int, parts: int) -> list[int]:
    """Return the ends of `parts` sub-blocks of nearly equal width; empty ones are left out."""
    return sorted({width * (i + 1) // parts for i in range(parts)} - {0})


@dataclass
class Convergence:
    """The convergence of the blocks of one request: records each pass's iterate, to be judged once the text is known.

    Attributes:
        passes: for each pass, the number of its block, the position of the iterate in the text, and the iterate that
            the pass was given.
    """

    passes: list[tuple[int, int, list[int]]] = field(default_factory=list)

    def histograms(self, text: Sequence[int]) -> dict[str, list[int]]:
        """Return three histograms, each a list of how many passes (or blocks) had 0, 1, 2, … of these:

        * `tokens_fixed_per_pass`: tokens that became certain in a pass. Certain are the tokens before the iterate's
          first error and the target's own token after them; those that earlier passes made certain do not count.
        * `right_before_their_turn_per_pass`: guesses after the first error that are nevertheless the text's tokens.
        * `passes_per_block`: passes from a block's beginning until it was accepted completely or dropped.

        Guesses for positions that the text never reached are not counted.
        """
        known, certain = np.asarray(text), 0
        fixed, early, blocks = [], [], []
        for block, start, iterate in self.passes:
            there = known[start : start + len(iterate)]
            right = np.asarray(iterate[: len(there)], dtype=int) == there
            prefix = int(np.logical_and.accumulate(right).sum())
            frontier = min(start + prefix + 1, len(known))
            fixed.append(frontier - max(certain, start))
            certain = max(certain, frontier)
            early.append(int(right[prefix:].sum()))
            blocks.append(block)
        return {
            "tokens_fixed_per_pass": _histogram(np.maximum(fixed, 0)),
            "right_before_their_turn_per_pass": _histogram(early),
            "passes_per_block": _histogram(np.unique(blocks, return_counts=True)[1]),
        }


def _histogram(values: Sequence[int] | np.ndarray) -> list[int]:
    """Return ``[number of 0s, number of 1s, …]``."""
    return np.bincount(np.asarray(values, dtype=int)).tolist()
