"""Decide which drafted nodes are accepted, so that the text is the one that the target would write by itself.

1. On the device, for all nodes at once: `match` (greedy, or a draft that was not sampled) or `reject` (a sampled draft)
   decides whether each node's token may follow its parent (`right`), and which token follows a node if acceptance ends
   there (`after`).
2. On the host: `follow` walks down the tree along right nodes, and returns them and the bonus token.

Both steps know nothing of models, so the tests check them with made-up logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfdraft.core.sampling import draw
from selfdraft.core.tree import ROOT, TokenTree


@dataclass(frozen=True)
class Acceptance:
    """The result of one verification.

    Attributes:
        nodes: indices of the accepted nodes, from the root downwards; empty if nothing was accepted.
        bonus: the token that the target itself puts after the accepted nodes. Every step commits at least this one.
    """

    nodes: tuple[int, ...]
    bonus: int


def follow(tree: TokenTree, right: Tensor, after: Tensor) -> Acceptance:
    """Return the longest branch of candidates that are all right, and the token after it.

    Args:
        tree: n nodes.
        right: (n,) bool on the CPU: whether the node's parent continues with it. This holds for at most one child of
            each parent, or for several children with the same token.
        after: (n + 1,) int64 on the CPU: the token after the root, and after each node, if acceptance ends there.
    """
    taken: list[bool] = []  # by node: whether it and all nodes above it are right candidates
    deepest, reached, depths = ROOT, 0, tree.depths.tolist()
    for node, (parent, fits) in enumerate(zip(tree.parent_list, (right & tree.is_candidate).tolist(), strict=True)):
        taken.append(fits and (parent == ROOT or taken[parent]))
        if taken[node] and depths[node] > reached:
            deepest, reached = node, depths[node]
    bonus, nodes = int(after[deepest + 1]), []
    while deepest != ROOT:
        nodes.append(deepest)
        deepest = tree.parent_list[deepest]
    return Acceptance(tuple(reversed(nodes)), bonus)


def match(tree: TokenTree, predictions: Tensor) -> Tensor:
    """Return (n,) bool: whether each node's token is the one predicted after its parent.

    With argmax predictions this is greedy acceptance. With predictions *drawn* from the target's distributions it is
    exact sampling for drafts that are not random draws themselves: a node x is taken with probability p(x); otherwise
    the token of the same draw follows, which is distributed as p without x, renormalised.

    Args:
        predictions: (n + 1,) int64, after the root and after each node.
    """
    return tree.tokens.to(predictions.device) == predictions[tree.parents.to(predictions.device) + 1]


def accept_greedy(tree: TokenTree, predictions: Tensor) -> Acceptance:
    """Accept the longest branch on which every token is the target's argmax after its parent.

    The output equals autoregressive greedy decoding by induction: a node is accepted only if all its ancestors are, and
    only if its token is the one that the target would have written next.
    """
    return follow(tree, match(tree, predictions), predictions)


def reject(tree: TokenTree, p: Tensor, q: Tensor, trials: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Apply rejection sampling to drafts drawn from distributions q (Leviathan et al. 2023; siblings as in SpecInfer).

    A parent tries its children in order. Let r be the rest of the target's distribution, at first p itself. Child x,
    drawn from q, is taken with probability min(1, r(x) / q(x)). If it is not taken, r becomes max(r - q, 0),
    renormalised, and the next child is tried. If none is taken, the next token is drawn from the last r. So the token
    after every parent is distributed as p. This holds for siblings drawn with replacement (all from one q) and without
    (each from q without those before it, renormalised), as long as node i was really drawn from ``q[i]``.

    Args:
        tree: n nodes; siblings in the order in which they were drawn.
        p: (n + 1, V) the target's distributions after the root and each node, warped.
        q: (n, V) the distribution that each node was drawn from.
        trials: (n,) uniform numbers, one for each node's trial.
        draws: (n + 1,) uniform numbers, one for each token in `after`.

    Returns:
        `right` (n,) and `after` (n + 1,), for `follow`.
    """
    device = p.device
    parents, tokens = tree.parents.to(device) + 1, tree.tokens.to(device)
    left = p.clone()
    right = torch.zeros(len(tree), dtype=torch.bool, device=device)
    open_ = torch.ones(len(tree) + 1, dtype=torch.bool, device=device)  # parents that have taken no child yet
    ranks, may = tree.sibling_ranks.tolist(), tree.is_candidate.tolist()
    for rank in range(max(ranks, default=-1) + 1):
        nodes = torch.tensor([i for i in range(len(tree)) if ranks[i] == rank and may[i]], device=device).long()
        over, token = parents[nodes], tokens[nodes]
        r, drawn_from = left[over], q[nodes]
        ratio = r.gather(-1, token[:, None])[:, 0] / drawn_from.gather(-1, token[:, None])[:, 0]
        right[nodes] = open_[over] & (trials[nodes] < ratio)
        open_[over] &= ~right[nodes]
        rest = (r - drawn_from).clamp_(min=0)
        total = rest.sum(-1, keepdim=True)
        # Where r equals q, rejection has probability zero and r - q is zero. Keep r there, so that nothing becomes NaN.
        left[over] = torch.where(total > 0, rest / total, r)
    return right, draw(left, draws)
