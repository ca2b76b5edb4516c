"""transformers' logits processors, as the rule for the next token takes them."""

from __future__ import annotations

from transformers import RepetitionPenaltyLogitsProcessor

from selfdraft.core.sampling import Processor


def repetition_penalty(penalty: float) -> Processor:
    """Tokens of the history lose: their logits are divided, or multiplied where negative, by `penalty`."""
    return RepetitionPenaltyLogitsProcessor(penalty)
