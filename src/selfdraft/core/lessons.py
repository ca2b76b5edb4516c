"""What drafters are trained on: blocks of a text, losses over them, and how far a draft would have got.

Shapes: B rows of packed text, N tokens a row; G blocks of K positions a row; v tokens of the draft vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Blocks:
    """Positions at which a drafter is trained, in blocks that see the target's own keys of everything before them.

    A position stands for the prediction of the token behind it.

    Attributes:
        index: (B, G, K) places in the row. valid: (B, G, K) whether the text goes on there: only those count.
    """

    index: Tensor
    valid: Tensor

    def gathered(self, values: Tensor) -> Tensor:
        """(B, N, …) values of every place, as (B, G * K, …)."""
        flat = self.index.flatten(1)
        return values.gather(1, flat.view(*flat.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:]))

    def before(self, values: Tensor, texts: Tensor) -> Tensor:
        """(B, G * K, C) values of the place before each block, at its first position; zeros at the others, and where
        a text begins.

        Args:
            values: (B, N, C) of every place. texts: (B, N) number of the text there.
        """
        known = torch.zeros_like(values)
        known[:, 1:] = values[:, :-1] * (texts[:, 1:] == texts[:, :-1])[..., None]
        first = torch.arange(self.index[0].numel(), device=values.device) % self.size == 0
        return self.gathered(known) * first[:, None]

    @property
    def size(self) -> int:
        """K."""
        return self.index.shape[-1]


def blocks_of(texts: Tensor, wanted: Tensor, size: int, stride: int, offset: int) -> Blocks:
    """Blocks of `size` positions, one every `stride` from `offset` on, that begin where something is to be learnt.

    Args:
        texts: (B, N) number of the text at every place. wanted: (B, N) bool, whether the token behind is to be learnt.
    """
    rows, length = texts.shape
    first = torch.arange(offset, max(length - size, offset) + 1, stride, device=texts.device)
    first = first[first + size <= length]
    if not len(first):
        first = torch.zeros(1, dtype=torch.long, device=texts.device)
    index = (first[:, None] + torch.arange(size, device=texts.device)).clamp(max=length - 1).expand(rows, -1, -1)
    flat = index.flatten(1)
    same = texts.gather(1, flat).view_as(index) == texts.gather(1, index[..., 0])[..., None]
    valid = (wanted.gather(1, flat).view_as(index) & same).cumprod(-1).bool()
    # Blocks that count come first, and those that count in no row are left out.
    order = (~valid[..., 0]).to(torch.int8).argsort(dim=1, stable=True)
    kept = max(int(valid[..., 0].sum(1).max()), 1)
    order = order[:, :kept, None].expand(-1, -1, size)
    return Blocks(index.gather(1, order), valid.gather(1, order))


def wanted_positions(texts: Tensor, answers: Tensor, *, answers_only: bool) -> Tensor:
    """(B, N) bool: where the next token belongs to the same text, and, if so wanted, to an answer."""
    wanted = torch.zeros_like(answers)
    wanted[:, :-1] = (texts[:, :-1] == texts[:, 1:]) & (texts[:, :-1] >= 0)
    if answers_only:
        wanted[:, :-1] &= answers[:, 1:]
    return wanted


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """(n,) Kullback-Leibler divergence of the student's next-token distributions from the teacher's; (n, v) logits."""
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """(n,) squared distance of hidden states, relative to the teacher's length."""
    return (student - teacher).square().mean(-1) / teacher.square().mean(-1).clamp(min=1e-6)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of (n,) values by (n,) weights, zero where there is nothing to weigh."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)


def chain_counts(right: Tensor, valid: Tensor) -> Tensor:
    """(K, 2) drafted tokens offered and accepted at every depth, had each block been a chain in greedy decoding.

    Until its first wrong token a chain is the text itself, so predictions behind the true tokens are the draft's.

    Args:
        right, valid: (…, K) bool, whether the prediction is the token that follows.
    """
    right, valid = right.flatten(0, -2), valid.flatten(0, -2)
    stands = (right & valid).long().cumprod(-1)
    before = torch.cat([torch.ones_like(stands[:, :1]), stands[:, :-1]], dim=1)
    return torch.stack([(before * valid).sum(0), stands.sum(0)], dim=-1)


def expected_accepted(counts: Tensor) -> float:
    """Tokens accepted of a chain, on average, from (K, 2) counts by depth: what decides how long to train."""
    reached, expected = 1.0, 0.0
    for offered, accepted in counts.tolist():
        reached *= accepted / offered if offered else 0.0
        expected += reached
    return expected


def layer_dropout(layers: int, largest: float) -> list[float]:
    """LayerSkip's rates (arXiv 2404.16710): from zero at the first layer to `largest` at the last, exponentially."""
    return [largest * (2.0 ** (i / max(layers - 1, 1)) - 1.0) for i in range(layers)]


def early_layer(curriculum: str, layers: int, step: int, steps: int) -> int | None:
    """At which layer but the last LayerSkip's curriculum adds an early-exit loss at this step; None for nowhere.

    `rotational`: one layer after the other. `gradual`: from the last but one towards the first, over half the training,
    then rotating among all.
    """
    inner = layers - 1
    if curriculum == "none" or inner < 1:
        return None
    if curriculum == "gradual":
        enabled = min(1 + int(2 * inner * step / max(steps, 1)), inner)
        return inner - 1 - step % enabled
    return step % inner
