"""Which drafted nodes stand: greedy acceptance over chains and trees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfdraft.core.tree import TokenTree


@dataclass(frozen=True)
class Acceptance:
    """What one verification decided.

    Attributes:
        path: indices of the accepted nodes, from the root downwards; empty where nothing was accepted.
        bonus: the token that the target itself puts after the path. Every step commits at least this one.
    """

    path: tuple[int, ...]
    bonus: int


def accept_greedy(tree: TokenTree, predictions: Tensor) -> Acceptance:
    """Accept the longest path on which every token is the target's argmax after its parent.

    Equal to autoregressive greedy decoding by induction: a node is accepted only if all before it were, and only if it
    is the very token the target would have written next.

    Args:
        tree: n nodes.
        predictions: (n + 1,) int64 on the CPU. Entry 0 is the argmax after the root, entry i + 1 the one after node i.
    """
    if not len(tree):
        return Acceptance((), int(predictions[0]))
    right = tree.is_candidate & (tree.tokens == predictions[tree.parents + 1])
    if tree.is_chain:
        length = int(right.long().cumprod(0).sum())
        return Acceptance(tuple(range(length)), int(predictions[length]))
    stands = ~(tree.sees & ~right).any(dim=1)  # no wrong node on the way down
    if not bool(stands.any()):
        return Acceptance((), int(predictions[0]))
    deepest = int(torch.where(stands, tree.depths, 0).argmax())
    path = tree.sees[deepest].nonzero().flatten().tolist()
    return Acceptance(tuple(path), int(predictions[deepest + 1]))
