"""A random model and its plain greedy text, for tests of losslessness on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from transformers import PreTrainedModel

from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Drafter
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, WINDOW, tiny_model

LENGTH = 18

# Rows that are ragged, shorter and longer than a window; more than a batch holds; repetitions for lookups to find.
PROMPTS = [
    [5, 17, 3, 60, 42],
    [7, 33, 81, 2, 14, 27, 55, 90, 1, 68, 12, 44, 9, 23, 71, 38, 6, 50, 19, 85, 2, 14, 27],
    [11],
    [64, 12, 64, 12, 64, 12, 64, 12, 64, 12],
    [30, 31, 32, 33, 34, 35, 36, 37, 30, 31, 32, 33, 34, 35, 36],
]
assert min(map(len, PROMPTS)) < WINDOW < max(map(len, PROMPTS))

# A tiny random model is all sublayers: leave one out and nothing is as it was, and its text never says a thing twice.
# Larger embeddings make sublayers a modest addition to the stream, as they are in trained models: then drafts are right
# now and wrong then. Where sublayers end in a norm, they are modest already.
MILDER = dict.fromkeys(FAMILIES, 100.0) | {"gpt_neox": 30.0, "olmo2": 8.0, "gemma2": 1.0, "gemma3_text": 1.0}

PACKED = ("llama", "gemma3_text", "gpt_neox")  # of the mild ones, which batches run: on tiny models it takes longer


@torch.inference_mode()
def stock_output(model: PreTrainedModel, prompt: Sequence[int], length: int = LENGTH, **options: int) -> list[int]:
    """The output of transformers."""
    ids = torch.tensor([prompt], device=model.device)
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, **options
    )
    return written[0, len(prompt) :].tolist()


@dataclass(frozen=True)
class Subject:
    """A model, its target, and the model's plain greedy text."""

    model: PreTrainedModel
    target: Target
    expected: list[list[int]]

    def decode(self, drafter: Drafter, batch_size: int, which: Sequence[int] = range(len(PROMPTS))) -> list[Generation]:
        """Our answers to the prompts with these indices, in that order."""
        decoder = Decoder(self.target, drafter, Stopping(frozenset(), LENGTH), batch_size=batch_size)
        run = decoder.run(Request(PROMPTS[i], seed=i, key=i) for i in which)
        finished = {request.key: generation for request, generation in run if generation.ended}
        return [finished[i] for i in which]


@cache
def subject(family: str, seed: int, mild: bool, device: str = "cpu") -> Subject:
    """Built once, because many tests use it."""
    model = tiny_model(family, seed=seed).to(device)
    if mild:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(MILDER[family])
    return Subject(
        model, Target(model, packed=not mild or family in PACKED), [stock_output(model, prompt) for prompt in PROMPTS]
    )
