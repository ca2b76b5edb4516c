"""The losslessness certificate of one output (DESIGN: grade 2, *numbers*).

A forward of k tokens and k forwards of one token round differently, so where the two best tokens are closer than that
rounding, either may win. Such a divergence is a *tie*; any other is a *mismatch*, and fails the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from torch import Tensor

Verdict = Literal["exact", "sampled", "tie", "mismatch"]


@dataclass(frozen=True)
class Float32:
    """A tie, looked at without the rounding that made it one.

    Attributes:
        margin: logit of the autoregressive token minus logit of the drafter's token.
        control: the largest change of such a margin between float32 and the dtype's M=1 and M=k forwards.
        prefers: whose token float32 would have written.
    """

    margin: float
    control: float
    prefers: Literal["baseline", "drafter"]


@dataclass(frozen=True)
class Certificate:
    """One prompt's verdict.

    Attributes:
        verdict: `exact` where both outputs are the same ids, to the last. `sampled` where they are two draws from one
            distribution: no comparison of texts can judge that; the chi-square tests of the suite do.
        first_divergence: index into the output of the first differing token.
        margin: the best logit minus that of the worse of the two tokens there, in the M=1 forward. Decoded alone, the
            autoregressive token is the best; in a batch either may have lost to rounding. It is at least the
            top-1/top-2 margin, and equal to it where one of the two tokens is the runner-up.
        control: the largest change of such a margin between M=1 and M=k forwards of the same tokens, in this dtype.
        float32: of a tie in a narrower dtype, what the same model says in float32.
    """

    verdict: Verdict
    first_divergence: int | None = None
    margin: float | None = None
    control: float | None = None
    float32: Float32 | None = None

    def to_dict(self) -> dict:
        """As it stands in prompts.jsonl."""
        return asdict(self)


def first_divergence(output: Sequence[int], reference: Sequence[int]) -> int | None:
    """Index of the first token in which the two differ, a missing token counting as different; None if equal."""
    for index, (ours, theirs) in enumerate(zip(output, reference, strict=False)):
        if ours != theirs:
            return index
    return None if len(output) == len(reference) else min(len(output), len(reference))


def judge(index: int, margin: float, control: float) -> Certificate:
    """The verdict on a divergence at `index`: a tie within the control, otherwise a mismatch."""
    verdict: Verdict = "tie" if margin <= control else "mismatch"
    return Certificate(verdict, index, margin, control)


def recheck(tie: Certificate, margin: float, control: float) -> Certificate:
    """The tie with what float32 says. Two tokens further apart there than rounding reaches were no tie: a mismatch."""
    verdict: Verdict = "tie" if abs(margin) <= control else "mismatch"
    return replace(tie, verdict=verdict, float32=Float32(margin, control, "baseline" if margin >= 0 else "drafter"))


def margin_control(single: Tensor, block: Tensor) -> float:
    """How far rounding alone moves the margin between the two best tokens.

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
    return float(change.nan_to_num(nan=0.0).abs().max())  # inf - inf: a rule left one token, in both
