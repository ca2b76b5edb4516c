"""Jacobi iteration over a block of draft tokens (Santilli et al. 2023, arXiv 2305.10427).

Greedy decoding is the fixed point of ``y[i] = argmax p(. | prefix, y[:i])``. One parallel forward over a block y gives
the right-hand side for all i at once; feeding it back in place of y is one Jacobi iteration.
"""

from __future__ import annotations

from torch import Tensor


def next_iterate(predictions: Tensor) -> Tensor:
    """The block after one more iteration, aligned with the block that was forwarded.

    Args:
        predictions: (W + 1,) argmax after the root and after each of the W block tokens.

    Returns:
        (W,) the refined block: position i gets the prediction that was made from the tokens before it.
    """
    return predictions[:-1]


def carried_block(predictions: Tensor, accepted: int) -> Tensor:
    """What a *fused* pass leaves for the next block, after it committed `accepted` tokens and its bonus token.

    The next iterate holds positions 1..W + 1 behind the old root. The first ``accepted + 1`` of them are committed now,
    so what remains, W - accepted tokens, already stands in its place behind the new root.

    Args:
        predictions: (W + 1,) argmax after the root and after each of the W block tokens.
        accepted: how many block tokens were accepted.

    Returns:
        (W - accepted,) refined guesses for the positions behind the new root.
    """
    return predictions[accepted + 1 :]


def is_fixed_point(block: Tensor, refined: Tensor) -> bool:
    """Whether a further iteration would change nothing: the block is the target's own greedy continuation."""
    return bool((block == refined).all())
