"""Compute our logits of a given text, in blocks of a given size, to see how the size of a block changes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.target import Target


def teacher_forced(target: Target, text: Sequence[int], prefix: int, block: int) -> Tensor:
    """Return the target's logits of a given text.

    The cache is overwritten, and the forwards are not counted as decoding.

    Args:
        prefix: number of tokens to prefill. block: number of the other tokens in one forward.

    Returns:
        (len(text) - prefix, V) logits after each token that follows the prefix.
    """
    (logits,) = teacher_forced_in(target, text, prefix, [block])
    return logits


@torch.inference_mode()
def teacher_forced_in(target: Target, text: Sequence[int], prefix: int, blocks: Sequence[int]) -> list[Tensor]:
    """Return the logits of `teacher_forced` for each block size, sharing one prefill unless keys are recomputed."""
    forwards, every = target.forwards, []
    target.allocate(1, len(text) + max(blocks))
    cache = target.cache
    for block in blocks:
        if cache.prefilled_at[0] == prefix + 1:
            cache.rewind(0, prefix)
        else:  # the row is empty, or its keys were recomputed past the limit of a rope
            cache.clear(0)
            target.prefill(0, text[:prefix])
        parts, first = [], prefix
        while first < len(text):
            target.refresh(0, text[: first + 1])
            root, *rest = text[first : first + min(block, 1 + target.rotary.alike_after(first))]
            parts.append(target.forward([0], [root], [TokenTree.chain(rest)])[0])
            target.commit(0, range(len(rest)))
            first += 1 + len(rest)
        every.append(torch.cat(parts))
    target.forwards = forwards
    return every
