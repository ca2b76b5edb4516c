"""Answers by transformers' own generate, in left-padded batches, and faults to plant in them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from selfdraft.models.loading.tiny import tiny_model

LENGTH, PAD = 24, 0
VOCABULARY = 96


def prompts_of(seed: int, count: int) -> list[list[int]]:
    """Random prompts of 1 to 16 tokens, none of which is the padding."""
    draw = random.Random(seed)
    return [[draw.randrange(1, VOCABULARY) for _ in range(draw.randint(1, 16))] for _ in range(count)]


@torch.inference_mode()
def batched(model: PreTrainedModel, prompts: Sequence[Sequence[int]], eos: int | None = None) -> list[list[int]]:
    """Greedy answers of one batch, as generate returns them: padded after an end of sequence."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": eos, "pad_token_id": PAD}
    written = model.generate(ids, attention_mask=mask, **options)
    return written[:, width:].tolist()


def ending_model(family: str, dtype: torch.dtype, seed: int = 0) -> tuple[PreTrainedModel, int]:
    """A model, and a token that ends some of its answers: one that many of them have, but late."""
    model = tiny_model(family, seed=seed, dtype=dtype)
    answers = batched(model, prompts_of(0, 8))
    late = Counter(token for answer in answers for token in set(answer[8:]) - set(answer[:8]) - {PAD})
    return model, late.most_common(1)[0][0]


@torch.inference_mode()
def logits_of(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """The (n, V) logits that chose the tokens of an answer."""
    return model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1].float()


@torch.inference_mode()
def continued(model: PreTrainedModel, text: Sequence[int], count: int) -> list[int]:
    """What the model writes after a text."""
    ids = torch.tensor([list(text)])
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(text) :].tolist()
