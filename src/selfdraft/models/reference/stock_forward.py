"""The logits of a whole text by the stock model's own forward: the reference that our forwards are compared with.

One forward of transformers gives all of them, without a cache and with none of our code in it. Where rotary positions
depend on the length of the text (`longrope`, `dynamic` NTK), such a forward differs from decoding: there `generate`
itself is made to write the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from selfdraft.models.families.dispatch import device_of
from selfdraft.models.families.undivided import cache_name


class StockForward:
    """transformers' forward of one model.

    Attributes:
        depends_on_length: whether a token's logits depend on how long the text was when its keys were computed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.depends_on_length = any(_depends_on_length(module) for module in model.modules())

    @torch.inference_mode()
    def stretches(self, text: Sequence[int], prompt_length: int, bounds: Sequence[int]) -> Iterator[Tensor]:
        """Yield (n, V) float32 logits, stretch by stretch.

        Args:
            text: a prompt and its answer, without the last token (nothing follows that).
            prompt_length: tokens of the prompt.
            bounds: ascending; a stretch is the logits after the tokens from one bound up to the next. The first one is
                `prompt_length - 1` where the model depends on the length of the text.
        """
        if self.depends_on_length:
            logits = self._generated(text, prompt_length)
            for first, end in pairwise(bounds):
                yield logits[first - bounds[0] : end - bounds[0]]
            return
        for first, end in pairwise(bounds):
            yield self._forward(text[:end], end - first)

    @torch.inference_mode()
    def in_steps(self, text: Sequence[int], bounds: Sequence[int], size: int) -> Iterator[Tensor]:
        """Yield the same for a text that the model takes in steps of `size` tokens, with its own cache.

        Raises:
            Exception: of any kind: the model does not take a text in steps of this size.
        """
        name = cache_name(self.model)
        cache: Any = None
        at, logits = 0, []
        while at < len(text):
            count = min(size if at else max(bounds[0], size), len(text) - at)
            ids = torch.tensor([list(text[at : at + count])], device=device_of(self.model))
            out = self.model(input_ids=ids, use_cache=True, **({} if cache is None else {name: cache}))
            cache = out[name]
            logits.append(out.logits[0, max(bounds[0] - at, 0) :].float())
            at += count
        every = torch.cat(logits)
        for first, end in pairwise(bounds):
            yield every[first - bounds[0] : end - bounds[0]]

    def _forward(self, text: Sequence[int], count: int) -> Tensor:
        ids = torch.tensor([list(text)], device=device_of(self.model))
        return self.model(input_ids=ids, use_cache=False, logits_to_keep=count).logits[0, -count:].float()

    def _generated(self, text: Sequence[int], prompt_length: int) -> Tensor:
        """Return (len(text) - prompt_length + 1, V) logits after the prompt and after each token of the answer."""
        self._forget()
        config = GenerationConfig(
            max_new_tokens=len(text) - prompt_length + 1,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        dictated = LogitsProcessorList([_Dictated(text)])
        written = generate(self.model, text[:prompt_length], config, logits_processor=dictated)
        self._forget()
        return torch.cat(list(written.logits)).float()

    def _forget(self) -> None:
        """Run a text of one token: it resets dynamic NTK, which keeps the table of the longest text so far."""
        self._forward([0], 1)


def generate(model: Any, prompt: Sequence[int], config: GenerationConfig, **options: Any) -> Any:
    """Run transformers' `generate` on one prompt with `config`, ignoring the model's own generation config.

    Args:
        model: a `PreTrainedModel`, of which torch does not know that it can generate.
        options: further arguments of `generate`.

    Returns:
        What `generate` returns.
    """
    ids = torch.tensor([list(prompt)], device=device_of(model))
    # During the call the model has an empty config, because options that ours leaves open would be taken from it.
    with patch.object(model, "generation_config", GenerationConfig()):
        return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, **options)


class _Dictated(LogitsProcessor):
    """A logits processor that allows only the next token of a given text."""

    def __init__(self, text: Sequence[int]) -> None:
        self.text = text

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        length = input_ids.shape[1]
        if length >= len(self.text):  # tokens after the text are not used
            return scores
        only = torch.full_like(scores, float("-inf"))
        only[:, self.text[length]] = 0.0
        return only


def _depends_on_length(module: torch.nn.Module) -> bool:
    kinds = getattr(module, "rope_type", None)
    names = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(name == "longrope" or "dynamic" in str(name) for name in names)
