"""Choose leaves beside the tokens of a drafted chain: how many, and which."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from selfdraft.core.lengths import ExpectedGain, Rule
from selfdraft.core.sampling import draw
from selfdraft.drafters.base import Context

# SWIFT's thresholds of a drafted token's confidence, and the children per depth above each (the token itself included):
CONFIDENT = (0.95, 0.8, 0.5, -1.0)
CHILDREN_GREEDY, CHILDREN_SAMPLED = (3, 5, 8, 10), (1, 3, 5, 10)
MOST_CHILDREN = 16  # the most children per depth, if their number is chosen by costs


def children(rule: Rule, confidences: Sequence[float], q: Tensor, size: int, *, sample: bool) -> int:
    """Return how many children to draft at the depth of a chain's last token, that token included.

    Args:
        rule: the chain's length rule; `ExpectedGain` chooses as many children as pay, the others SWIFT's numbers.
        confidences: of the chain's tokens.
        q: (1, V) the distribution that the last token was drawn from.
        size: tokens of the verification so far, the root included.
    """
    if isinstance(rule, ExpectedGain):
        best = q[0].topk(min(MOST_CHILDREN, q.shape[-1])).values.tolist()
        return 1 + rule.leaves(confidences, [p for p in best if p != confidences[-1]], size)
    level = next(i for i, least in enumerate(CONFIDENT) if confidences[-1] > least)
    return (CHILDREN_SAMPLED if sample else CHILDREN_GREEDY)[level]


def siblings_of(context: Context, q: Tensor, token: int, count: int) -> tuple[list[int], list[Tensor]]:
    """Return up to ``count - 1`` tokens beside the drafted one, and the (1, V) distribution each was drawn from.

    In greedy decoding they are the next best tokens, without distributions. When sampling, they are drawn without
    replacement: each from q without the tokens drawn before it, renormalised.
    """
    if not context.rule.sample:
        best = q[0].topk(min(count, q.shape[-1])).indices.tolist()
        return [t for t in best if t != token][: count - 1], []
    tokens, left = [], []
    rest, last = q.clone(), token
    for _ in range(count - 1):
        rest[0, last] = 0
        total = rest.sum()
        if not float(total) > 0:
            break
        rest = rest / total
        last = int(draw(rest, context.uniforms(1, q.device)))
        tokens.append(last)
        left.append(rest)
        rest = rest.clone()
    return tokens, left
