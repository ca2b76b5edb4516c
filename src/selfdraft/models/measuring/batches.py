"""Choose how many texts to decode at once, where the user does not say.

The choice is limited by free memory. Within that, it follows the measured time of a forward of so many rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.target import Target
from selfdraft.models.measuring.memory import available, needed

MOST_ROWS = 128  # on CPUs the rate hardly grows after 64 rows
GAIN = 1.04  # more rows have to raise the rate by at least this factor: they also make the last texts wait longer
MEMORY_SHARE = 0.5  # the share of the free memory that rows may take
ROUNDS = 2
UNUSED = 2  # token id of timed forwards; any would do


@dataclass(frozen=True)
class BatchRate:
    """How fast one number of rows is: `seconds` of a forward of one token in each of `rows` rows."""

    rows: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all rows together, each second."""
        return self.rows / self.seconds


def rows_that_fit(target: Target, new_tokens: int, processes: int = 1) -> int:
    """Return how many rows a share of the free memory holds, at least 1 and at most `MOST_ROWS`.

    Args:
        new_tokens: number of new tokens of each text. processes: number of processes that share the memory equally.
    """
    one, two = (
        needed(
            target.model, target.dtype, target.device, rows=rows, packed=False, new_tokens=new_tokens, certify=False
        ).total
        for rows in (1, 2)
    )
    memory = int(MEMORY_SHARE * available(target.device)) // processes
    return max(min(memory // max(two - one, 1), MOST_ROWS), 1)


def best_rate(target: Target, *, most: int, context: int) -> BatchRate:
    """Return the number of rows with the highest rate: doubled as long as that pays.

    The cache is overwritten, so call this while no request is decoded.

    Args:
        most: the largest number of rows to try. context: tokens that each row already has.
    """
    best: BatchRate | None = None
    for rate in _rates(target, most, context):
        if best is not None and rate.tokens_per_s < GAIN * best.tokens_per_s:
            break
        best = rate
    assert best is not None  # the first number of rows is always tried
    return best


@torch.inference_mode()
def _rates(target: Target, most: int, context: int) -> Iterator[BatchRate]:
    context = max(min(context, target.max_positions - 1), 1)
    rows, forwards = min(8, most), target.forwards
    while True:
        target.allocate(rows, context + 1)
        target.prefill(0, [UNUSED] * context)
        for row in range(1, rows):  # the values of their keys do not change the time, so these rows need no prefill
            target.cache.extend(row, context)
        fastest = float("inf")
        for _ in range(ROUNDS + 1):
            begin = time.perf_counter()
            logits = target.forward(range(rows), [UNUSED] * rows, [TokenTree.empty()] * rows)
            torch.cat([row.max(-1).indices for row in logits]).cpu()  # waits for the device
            fastest = min(fastest, time.perf_counter() - begin)
        target.forwards = forwards
        yield BatchRate(rows, fastest)
        if rows >= most:
            return
        rows = min(2 * rows, most)
