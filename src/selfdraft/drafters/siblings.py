"""Choose *siblings*: other tokens to verify beside each token of a drafted chain, in case that one is wrong.

They are leaves of the tree: nothing is drafted after them. The chain's length rule says how many there are.
"""

from __future__ import annotations

from torch import Tensor

from selfdraft.core.sampling import draw
from selfdraft.drafters.step import Context

MOST_RIVALS = 15  # the most leaves per depth, if their number is chosen by costs


def rivals_of(q: Tensor, confidence: float) -> list[float]:
    """Return the chances of the likeliest tokens of (1, V) q beside the drafted one, which has chance `confidence`."""
    best = q[0].topk(min(MOST_RIVALS + 1, q.shape[-1])).values.tolist()
    return [p for p in best if p != confidence]


def siblings_of(context: Context, q: Tensor, token: int, count: int) -> tuple[list[int], list[Tensor]]:
    """Return up to `count` tokens beside the drafted one, and the (1, V) distribution each was drawn from.

    In greedy decoding they are the next best tokens, without distributions. When sampling, they are drawn without
    replacement: each from q without the tokens drawn before it, renormalised.
    """
    if not context.rule.sample:
        best = q[0].topk(min(count + 1, q.shape[-1])).indices.tolist()
        return [t for t in best if t != token][:count], []
    tokens, left = [], []
    rest, last = q.clone(), token
    for _ in range(count):
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
