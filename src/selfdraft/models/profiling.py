"""Measures what forwards cost on this machine: what every weighing of a draft against its price rests on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from selfdraft.core.costs import CostCurve
from selfdraft.core.tree import TokenTree

if TYPE_CHECKING:
    from selfdraft.models.target import Path, Target

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@torch.inference_mode()
def measure_costs(
    target: Target, *, path: Path | None = None, sizes: Sequence[int] = SIZES, context: int = 256, rounds: int = 5
) -> CostCurve:
    """Time forwards of chains of every size behind `context` tokens, interleaved, through the full path or another.

    The fastest of `rounds` counts: neighbours on the machine only ever add time. What the cache holds is overwritten,
    so call this between requests; the forwards are not counted as decoding.
    """
    path, forwards = path or target.full, target.forwards
    generator = torch.Generator().manual_seed(0)
    sizes = [size for size in sizes if context + size <= target.max_positions] or [1, 2]
    context = min(context, target.max_positions - max(sizes))
    target.allocate(1, context + max(sizes))
    target.prefill(0, torch.randint(target.vocab_size, (context,), generator=generator).tolist())
    fastest = dict.fromkeys(sizes, float("inf"))
    for _ in range(rounds + 1):  # the first round warms up, and is the slowest
        for size in sizes:
            root, *rest = torch.randint(target.vocab_size, (size,), generator=generator).tolist()
            begin = time.perf_counter()
            logits = target.draft_forward(path, [0], 0, [root], [TokenTree.chain(rest)])[0]
            logits.argmax(-1).cpu()  # waits for the device, as decoding does
            fastest[size] = min(fastest[size], time.perf_counter() - begin)
    target.forwards = forwards
    return CostCurve.measured(sizes, [fastest[size] for size in sizes])
