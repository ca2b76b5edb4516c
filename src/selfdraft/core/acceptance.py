"""Which drafted nodes stand: exact acceptance over chains and trees, greedy and sampled.

Every rule first decides for each node whether *its parent* would take it (`right`), and for each position which token
follows if no child is taken (`after`), all nodes at once and on the device. `follow` then walks down on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfdraft.core.sampling import draw
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


def follow(tree: TokenTree, right: Tensor, after: Tensor) -> Acceptance:
    """The longest path of candidates that are right, and the token after it.

    Args:
        tree: n nodes.
        right: (n,) bool on the CPU: the node is what its parent continues with. At most one child of each is, or
            several with the same token.
        after: (n + 1,) int64 on the CPU: the token after the root, and after each node, where the path ends there.
    """
    if not len(tree):
        return Acceptance((), int(after[0]))
    right = right & tree.is_candidate
    if tree.is_chain:
        length = int(right.long().cumprod(0).sum())
        return Acceptance(tuple(range(length)), int(after[length]))
    stands = ~(tree.sees & ~right).any(dim=1)  # no wrong node on the way down
    if not bool(stands.any()):
        return Acceptance((), int(after[0]))
    deepest = int(torch.where(stands, tree.depths, 0).argmax())
    path = tree.sees[deepest].nonzero().flatten().tolist()
    return Acceptance(tuple(path), int(after[deepest + 1]))


def match(tree: TokenTree, predictions: Tensor) -> Tensor:
    """(n,) bool: nodes whose token is the one predicted after their parent.

    With argmax predictions this is greedy acceptance. With predictions *drawn* from the target's distributions it is
    exact sampling for drafts that are no random draws themselves: a node x is taken with probability p(x), and
    otherwise the token is what the same draw gave, which is p without x, renormalised.

    Args:
        predictions: (n + 1,) int64, after the root and after each node.
    """
    return tree.tokens.to(predictions.device) == predictions[tree.parents.to(predictions.device) + 1]


def accept_greedy(tree: TokenTree, predictions: Tensor) -> Acceptance:
    """Accept the longest path on which every token is the target's argmax after its parent.

    Equal to autoregressive greedy decoding by induction: a node is accepted only if all before it were, and only if it
    is the very token the target would have written next.
    """
    return follow(tree, match(tree, predictions), predictions)


def reject(tree: TokenTree, p: Tensor, q: Tensor, trials: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Rejection sampling for drafts drawn from distributions q (Leviathan et al. 2023; siblings as in SpecInfer).

    A parent tries its children in order. With r what is left of the target's distribution, first p itself, child x
    drawn from q is taken with probability min(1, r(x) / q(x)); if not, r becomes max(r - q, 0), renormalised, and the
    next child is tried. If none is taken, the next token comes from the last r. So the token after every parent is
    distributed as p, for siblings drawn with replacement (all from one q) and without (each from q without those
    before it, renormalised) alike: what counts is that ``q[i]`` is what node i was really drawn from.

    Args:
        tree: n nodes; siblings in the order in which they were drawn.
        p: (n + 1, V) the target's distributions after the root and each node, warped.
        q: (n, V) the distribution that each node was drawn from.
        trials: (n,) uniform numbers, one for each node's trial. draws: (n + 1,) for the tokens after.

    Returns:
        `right` (n,) and `after` (n + 1,), for `follow`.
    """
    device = p.device
    parents, tokens = tree.parents.to(device) + 1, tree.tokens.to(device)
    left = p.clone()
    right = torch.zeros(len(tree), dtype=torch.bool, device=device)
    open_ = torch.ones(len(tree) + 1, dtype=torch.bool, device=device)  # parents that have taken no child yet
    candidates = tree.is_candidate.to(device)
    for rank in range(int(tree.sibling_ranks.max()) + 1 if len(tree) else 0):
        nodes = ((tree.sibling_ranks.to(device) == rank) & candidates).nonzero().flatten()
        over, token = parents[nodes], tokens[nodes]
        r, drawn_from = left[over], q[nodes]
        ratio = r.gather(-1, token[:, None])[:, 0] / drawn_from.gather(-1, token[:, None])[:, 0]
        right[nodes] = open_[over] & (trials[nodes] < ratio)
        open_[over] &= ~right[nodes]
        rest = (r - drawn_from).clamp_(min=0)
        total = rest.sum(-1, keepdim=True)
        # Where r equals q, rejection has probability zero and leaves nothing: keep r, so that nothing becomes NaN.
        left[over] = torch.where(total > 0, rest / total, r)
    return right, draw(left, draws)
