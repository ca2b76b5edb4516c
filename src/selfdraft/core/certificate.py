"""The verdict on one output: is it the text of plain decoding, or may it differ because of rounding only?

A forward of k tokens (M=k) and k forwards of one token (M=1) round differently. If the logits of the two best tokens
are closer than that rounding, either may win. Such a difference is a *tie*. Any other is a *mismatch*, and fails the
run.

How far rounding moves logits is measured on the same text: the *control*. It has a limit, the largest effect that
rounding can have (`rounding.Ceiling`). If the control is above it, our forward is wrong, even if the texts agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from torch import Tensor

Verdict = Literal["exact", "sampled", "tie", "mismatch", "uncertified"]
Reason = Literal["forward", "control", "stock", "token", "length"]

REASONS: dict[Reason, str] = {
    "forward": "our forwards of this text are further from the model's own forward than rounding can be",
    "control": "our forwards of this text differ among themselves by more than rounding can do",
    "stock": "the model's own forward would have chosen another token, by more than rounding",
    "token": "the two tokens are further apart than rounding reaches",
    "length": "one text goes on where the other ends",
}


@dataclass(frozen=True)
class Float32:
    """A check in float32 of a tie that was found in a narrower dtype.

    Attributes:
        margin: logit of the autoregressive token minus logit of the drafter's token.
        control: the largest change of such a margin between float32 and the dtype's M=1 and M=k forwards.
        prefers: the decoder whose token float32 would have written.
    """

    margin: float
    control: float
    prefers: Literal["baseline", "drafter"]


@dataclass(frozen=True)
class Certificate:
    """One prompt's verdict.

    Attributes:
        verdict: `exact` if all token ids of both outputs are the same. `sampled` if they are two draws from one
            distribution: no comparison of texts can judge that; the chi-square tests of the suite do. `uncertified` for
            a text of another engine that is not compared, as its weights are others.
        first_divergence: index into the output of the first differing token. With the reason `stock`, index of the
            token that the model's own forward would not have chosen.
        margin: the best logit minus that of the worse of the two tokens there, in the M=1 forward. For a prompt decoded
            by itself, the autoregressive token is the best; in a batch either may have lost to rounding. It is at least
            the top-1/top-2 margin, and equal to it if one of the two tokens is the runner-up. With the reason `stock`,
            the best logit of the model's own forward minus that of the token written.
        control: the largest change of such a margin between forwards of the same tokens of this text, in this dtype.
        float32: for a tie in a narrower dtype, the same comparison in float32.
        reason: for a mismatch, one of `REASONS`.
        distance, ceiling: the distance between our forwards of the text and the model's own forward, and the largest
            distance that rounding can cause, both in sigmas of a logit. They belong to the stretch of text with the
            highest ratio of distance to ceiling.
    """

    verdict: Verdict
    first_divergence: int | None = None
    margin: float | None = None
    control: float | None = None
    float32: Float32 | None = None
    reason: Reason | None = None
    distance: float | None = None
    ceiling: float | None = None

    def to_dict(self) -> dict:
        """Return the certificate as it is written to prompts.jsonl."""
        return asdict(self)


def first_divergence(output: Sequence[int], reference: Sequence[int]) -> int | None:
    """Return the index of the first token that differs, a missing token counting as different; None if equal."""
    for index, (ours, theirs) in enumerate(zip(output, reference, strict=False)):
        if ours != theirs:
            return index
    return None if len(output) == len(reference) else min(len(output), len(reference))


def judge(index: int, margin: float, control: float, ceiling: float, reason: Reason = "token") -> Certificate:
    """Return the verdict on a divergence at `index`: a tie within the control, otherwise a mismatch.

    A control above the ceiling is more than rounding can cause, so it is a mismatch with the reason `control`.
    `reason` is the reason of a mismatch whose margin is above the control.
    """
    if not margin <= control:
        return Certificate("mismatch", index, margin, control, reason=reason)
    if control > ceiling:
        return Certificate("mismatch", index, margin, control, reason="control")
    return Certificate("tie", index, margin, control)


def recheck(tie: Certificate, margin: float, control: float, ceiling: float) -> Certificate:
    """Return the tie with its float32 result; a mismatch if rounding cannot explain the margin in float32."""
    checked = judge(tie.first_divergence or 0, abs(margin), control, ceiling)
    found = Float32(margin, control, "baseline" if margin >= 0 else "drafter")
    return replace(tie, verdict=checked.verdict, reason=checked.reason, float32=found)


def largest(changes: Iterable[float]) -> float:
    """Return the largest of at least one change; NaN if any is NaN, which `max` may overlook."""
    every = list(changes)
    return math.nan if any(map(math.isnan, every)) else max(every)


def margin_control(single: Tensor, block: Tensor) -> float:
    """Return how far rounding by itself moves the margin between the two best tokens, in logits.

    Args:
        single: (k, V) logits of k tokens from k forwards of one token.
        block: (k, V) logits of the same tokens from one forward of k.

    Returns:
        The maximum over positions of ``|margin_single - margin_block|``, the margin being between the two tokens that
        are best in `single`.
    """
    best = single.float().topk(2, dim=-1).indices
    one, many = (x.float().gather(-1, best) for x in (single, block))
    change = (one[:, 0] - one[:, 1]) - (many[:, 0] - many[:, 1])
    # A processor may leave one token only, in both forwards; then the margins are infinite and their difference is NaN.
    # That is no change. A NaN in the logits themselves is kept, so that it is reported.
    banned = one.isinf().any(-1) & many.isinf().any(-1)
    return float(change.masked_fill(banned, 0.0).abs().max())


def spread_of_changes(one: Tensor, other: Tensor) -> float:
    """Return how far rounding moves the margins between given tokens at one place, in logits.

    Args:
        one, other: (n,) logits of the same tokens by two forwards.

    Returns:
        The largest change of a margin between two of them. Tokens that a processor bans in both forwards are left out.
    """
    banned = one.isinf() & other.isinf()
    change = (one.float() - other.float())[~banned]
    return float(change.max() - change.min()) if change.numel() else 0.0
