"""What the recipes of task=finetune share: blocks of positions in a text, losses over them, and their acceptance.

A drafter is trained to predict, at many places of a text (*blocks*), the next few tokens as the target would write
them. Validation counts how many of these tokens would be accepted.

Shapes: B rows of packed text, N tokens per row; G blocks of K positions per row; v tokens of the draft vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

TRUST = 3.0  # how fast the loss of acceptance takes the place of the divergence as acceptance rises


@dataclass(frozen=True)
class Blocks:
    """Positions at which a drafter is trained, in blocks that see the target's own keys of all earlier positions.

    At each position, the token after it is predicted.

    Attributes:
        index: (B, G, K) positions in the row.
        valid: (B, G, K) bool, whether the position counts: it and all before it in the block are wanted, in one text.
    """

    index: Tensor
    valid: Tensor

    def gathered(self, values: Tensor) -> Tensor:
        """Select from (B, N, …) values of every position those of the blocks, (B, G * K, …)."""
        flat = self.index.flatten(1)
        return values.gather(1, flat.view(*flat.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:]))

    def before(self, values: Tensor, texts: Tensor) -> Tensor:
        """Return (B, G * K, C): at a block's first position, the value of the position before it; zeros elsewhere.

        A block at the beginning of a text has zeros at its first position, too.

        Args:
            values: (B, N, C) of every position. texts: (B, N) number of the text at every position.
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
    """Return blocks of `size` positions, one every `stride` from `offset` on, that begin at a wanted position.

    Args:
        texts: (B, N) number of the text at every position.
        wanted: (B, N) bool, whether the token after the position is to be learnt.
    """
    rows, length = texts.shape
    first = torch.arange(offset, max(length - size, offset) + 1, stride, device=texts.device)
    first = first[first + size <= length]
    if not len(first):
        first = torch.zeros(1, dtype=torch.long, device=texts.device)
    index = (first[:, None] + torch.arange(size, device=texts.device)).clamp(max=length - 1).expand(rows, -1, -1)
    valid = _valid(index, texts, wanted)
    # Sort each row so that blocks that count come first, and drop the columns of blocks that count in no row.
    order = (~valid[..., 0]).to(torch.int8).argsort(dim=1, stable=True)
    kept = max(int(valid[..., 0].sum(1).max()), 1)
    order = order[:, :kept, None].expand(-1, -1, size)
    return Blocks(index.gather(1, order), valid.gather(1, order))


def blocks_from(first: Tensor, texts: Tensor, wanted: Tensor, size: int) -> Blocks:
    """Return one block of `size` positions from each of the (B, G) given positions on; see `blocks_of`."""
    index = (first[..., None] + torch.arange(size, device=first.device)).clamp(max=texts.shape[1] - 1)
    return Blocks(index, _valid(index, texts, wanted))


def _valid(index: Tensor, texts: Tensor, wanted: Tensor) -> Tensor:
    """Return (B, G, K) which of the positions `index` count, see `Blocks.valid`."""
    flat = index.flatten(1)
    same = texts.gather(1, flat).view_as(index) == texts.gather(1, index[..., 0])[..., None]
    return (wanted.gather(1, flat).view_as(index) & same).cumprod(-1).bool()


def wanted_positions(texts: Tensor, answers: Tensor, *, answers_only: bool) -> Tensor:
    """Return (B, N) bool: whether the next token is in the same text and, with `answers_only`, in an answer."""
    wanted = torch.zeros_like(answers)
    wanted[:, :-1] = (texts[:, :-1] == texts[:, 1:]) & (texts[:, :-1] >= 0)
    if answers_only:
        wanted[:, :-1] &= answers[:, 1:]
    return wanted


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the (n,) KL divergence of the student's next-token distributions from the teacher's; (n, v) logits."""
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def missed_acceptance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the (n,) losses of acceptance (LK): mostly the divergence where little is accepted, 1 - acceptance else.

    By exact rejection sampling, a token drawn from the student is accepted with the sum over tokens of the smaller of
    both probabilities. Where that is almost zero, so is its slope, and only the divergence says where to go. It has the
    weight ``exp(-TRUST * acceptance)``, and the missed acceptance the rest.

    Args:
        student, teacher: (n, v) logits.
    """
    accepted = torch.minimum(student.softmax(-1), teacher.softmax(-1)).sum(-1)
    weight = torch.exp(-TRUST * accepted.detach())
    return weight * divergence(student, teacher) + (1 - weight) * (1 - accepted)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the (n,) mean squared distance of hidden states, relative to the teacher's mean square."""
    return (student - teacher).square().mean(-1) / teacher.square().mean(-1).clamp(min=1e-6)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of (n,) values; zero if all (n,) weights are zero."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)


def chain_counts(right: Tensor, valid: Tensor) -> Tensor:
    """Return (K, 2) drafted tokens offered and accepted at every depth, if each block were a chain in greedy decoding.

    Up to its first wrong token a chain equals the text, so predictions after the true tokens are those of the draft.

    Args:
        right: (…, K) bool, whether the prediction is the token that follows.
        valid: (…, K) bool, see `Blocks`.
    """
    right, valid = right.flatten(0, -2), valid.flatten(0, -2)
    accepted = (right & valid).long().cumprod(-1)
    before = torch.cat([torch.ones_like(accepted[:, :1]), accepted[:, :-1]], dim=1)
    return torch.stack([(before * valid).sum(0), accepted.sum(0)], dim=-1)


def expected_accepted(counts: Tensor) -> float:
    """Return the mean acceptance length of a chain, from (K, 2) counts by depth; it decides how long to train."""
    reached, expected = 1.0, 0.0
    for offered, accepted in counts.tolist():
        reached *= accepted / offered if offered else 0.0
        expected += reached
    return expected


def layer_dropout(layers: int, largest: float) -> list[float]:
    """Return LayerSkip's dropout rates: zero at the first layer, rising exponentially to `largest` at the last.

    Elhoushi et al. 2024, arXiv 2404.16710.
    """
    return [largest * (2.0 ** (i / max(layers - 1, 1)) - 1.0) for i in range(layers)]


def early_layer(curriculum: str, layers: int, step: int, steps: int) -> int | None:
    """Return the layer, other than the last, at which LayerSkip's curriculum adds an early-exit loss at this step.

    `rotational`: one layer after the other. `gradual`: layers are enabled from the last but one towards the first over
    half the training, and the loss rotates among those enabled. `none`: no layer.

    Returns:
        The layer's index, or None.
    """
    inner = layers - 1
    if curriculum == "none" or inner < 1:
        return None
    if curriculum == "gradual":
        enabled = min(1 + int(2 * inner * step / max(steps, 1)), inner)
        return inner - 1 - step % enabled
    return step % inner
