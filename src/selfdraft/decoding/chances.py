"""The target's probabilities of the tokens of recorded steps, computed later, for the viewer.

Decoding keeps none: greedy decoding never computes them, and doing so would take time that is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.models.forward.target import Target
from selfdraft.models.reference.teacher_forced import teacher_forced

BLOCK = 16  # tokens of the text in one forward

Chances = list[float | None]
"""Of each node of a step, and last of its bonus token; None where the target's distribution is not known."""


def distributions_of(target: Target, rule: NextToken, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """Return the (len(output), V) distributions from which each token of an answer was chosen.

    The cache is overwritten. The distributions are those of sampling by the rule; for greedy decoding, the softmax.
    """
    text, first = [*prompt, *output[:-1]], len(prompt) - 1
    with torch.inference_mode():
        logits = teacher_forced(target, text, first, BLOCK)
        return rule.distributions(logits, text[: first + 1], len(prompt), TokenTree.chain(text[first + 1 :])).cpu()


def chances_of(distributions: Tensor, steps: Sequence[Sequence[Any]]) -> list[Chances]:
    """Return the probabilities of the drafted and bonus tokens of each step.

    Known are those of nodes whose parents were accepted: of the accepted ones, and of the first token of each rejected
    branch. The steps may go on after the last distribution; they are left out.

    Args:
        distributions: (m, V), see `distributions_of`.
        steps: those of `Generation`, from the first one on.
    """
    found: list[Chances] = []
    at = 0  # tokens of the answer before the step
    for tokens, parents, accepted, bonus, *_ in steps:
        emitted = len(accepted) + (bonus is not None)
        if at + emitted > len(distributions):
            break
        row_of = {ROOT: at} | {node: at + depth for depth, node in enumerate(accepted, start=1)}
        chances: Chances = []
        for node, token in enumerate(tokens):
            row = row_of.get(node - 1 if parents is None else parents[node])
            known = row is not None and row < len(distributions)
            chances.append(_rounded(distributions[row, token]) if known else None)
        chances.append(None if bonus is None else _rounded(distributions[at + len(accepted), bonus]))
        found.append(chances)
        at += emitted
    return found


def _rounded(chance: Tensor) -> float:
    """Return three significant digits, which is what a reader sees."""
    return float(f"{float(chance):.3g}")
