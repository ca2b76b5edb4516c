"""Use transformers' logits processors as a sampling rule of ours."""

from __future__ import annotations

from transformers import RepetitionPenaltyLogitsProcessor

from selfdraft.core.sampling import Processor


def repetition_penalty(penalty: float) -> Processor:
    """Return a processor that divides the logits of tokens of the history by `penalty`, or multiplies negative ones."""
    return RepetitionPenaltyLogitsProcessor(penalty)
