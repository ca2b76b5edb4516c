"""Read a call of transformers' `generate(…, custom_generate=…)`: turn its arguments into those of our decoding.

By then `generate` has turned every option of its configuration into logits processors (warpers included, where it
samples) and stopping criteria. They are used as they are, so each applies exactly once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EosTokenCriteria,
    GenerationMode,
    MaxLengthCriteria,
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from selfdraft.core.errors import UserError
from selfdraft.core.sampling import NextToken, Processor

# They keep state from step to step, or call the model or the user's own function for each row of a batch.
_UNFIT = (
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
# They treat each row of a batch differently, and identify it by its number.
_BY_ROW = (EncoderNoRepeatNGramLogitsProcessor, EncoderRepetitionPenaltyLogitsProcessor)
_EXPECTED = {
    "attention_mask",
    "position_ids",
    "cache_position",
    "past_key_values",
    "use_cache",
    "logits_to_keep",
    "synced_gpus",
}
_REFUSED_OPTIONS = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions")
_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__


@dataclass(frozen=True)
class Row:
    """One row of the batch.

    Attributes:
        prompt: its ids without padding.
        rule: its sampling rule.
        criterion: whether an answer so far ends for other reasons than end of sequence and length; None for no others.
    """

    prompt: list[int]
    rule: NextToken
    criterion: Callable[[Sequence[int]], bool] | None


@dataclass(frozen=True)
class GenerateCall:
    """A call of `generate`. `pad_id`: the id that fills up rows whose answers end before others."""

    rows: list[Row]
    eos: frozenset[int]
    max_new_tokens: int
    pad_id: int

    @staticmethod
    def parse(
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        others: Mapping[str, Any],
    ) -> GenerateCall:
        """Parse the arguments that `generate` passes to a decoding method.

        Args:
            input_ids: (B, L), padded on the left.

        Raises:
            UserError: an option does not go with drafts, such as beams, an assistant, a cache of the caller's, or
                outputs other than the ids.
        """
        _refuse(input_ids, logits_processor, generation_config, others)
        ends = {int(i) for c in stopping_criteria if isinstance(c, EosTokenCriteria) for i in c.eos_token_id.flatten()}
        lengths = [c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria)]
        if not lengths:
            raise UserError("custom_generate: no length is given; pass max_new_tokens")
        further = [c for c in stopping_criteria if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)]
        mask = others.get("attention_mask")
        padding = [0] * len(input_ids) if mask is None else (mask == 0).sum(dim=1).tolist()
        ids, rows = input_ids.tolist(), []
        for b, pads in enumerate(padding):
            processors = (_of_row(logits_processor, b, len(ids), ids[b][:pads]),) if len(logits_processor) else ()
            rule = NextToken(sample=bool(generation_config.do_sample), processors=processors)
            rows.append(Row(ids[b][pads:], rule, _criterion(further, ids[b]) if further else None))
        pad = generation_config.pad_token_id
        return GenerateCall(
            rows, frozenset(ends), min(lengths) - input_ids.shape[1], min(ends, default=0) if pad is None else int(pad)
        )


def kept_back(name: str) -> Any:
    """Return an argument that `generate` was called with but does not pass on to `custom_generate`.

    transformers 5.23 does not pass on `assistant_model` and `streamer`. Ignoring them would be a silent fault: a reader
    of the streamer would wait for ever. So they are read from the frame of `generate` on the call stack.

    Returns:
        The argument; None if it was not given, or if no `generate` is on the stack.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _GENERATE:
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get(name)


def _refuse(
    input_ids: Tensor, processors: LogitsProcessorList, config: GenerationConfig, others: Mapping[str, Any]
) -> None:
    mode = config.get_generation_mode(others.get("assistant_model") or kept_back("assistant_model"))
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UserError(
            f"custom_generate: generation by {mode.value} cannot be drafted for; only greedy decoding and sampling can"
        )
    if input_ids.shape[1] == 0:
        raise UserError("custom_generate: a prompt has to be given as input_ids, not as inputs_embeds")
    asked = [name for name in _REFUSED_OPTIONS if getattr(config, name, None)]
    if asked:
        raise UserError(f"custom_generate: {asked[0]}=True is not supported; only the ids are returned")
    unfit = [type(p).__name__ for p in processors if isinstance(p, _UNFIT)]
    if unfit:
        raise UserError(f"custom_generate: {unfit[0]} cannot be applied to the nodes of a draft; leave its option out")
    if config.cache_implementation == "quantized":
        raise UserError("custom_generate: cache_implementation='quantized' is not supported: it changes the text")
    cache = others.get("past_key_values")
    if getattr(cache, "_is_user_defined", False) or (cache is not None and cache.get_seq_length() > 0):
        raise UserError("custom_generate: past_key_values is not supported: drafts need a cache of their own")
    # `generate` gives models for images and text an empty dictionary of what it encoded, if that is nothing.
    given = {
        name for name, value in others.items() if value is not None and not (isinstance(value, dict) and not value)
    }
    unknown = sorted(given - _EXPECTED)
    if unknown:
        raise UserError(f"custom_generate: {unknown[0]} is not supported; leave it out")
    mask, positions = others.get("attention_mask"), others.get("position_ids")
    visible = torch.ones_like(input_ids) if mask is None else mask
    if bool((visible.diff(dim=1) < 0).any()) or not bool(visible[:, -1].all()):
        raise UserError("custom_generate: prompts must be padded on the left (tokenizer.padding_side = 'left')")
    expected = visible.cumsum(dim=1) - 1
    if positions is not None and bool(((positions != expected) & (visible != 0)).any()):
        raise UserError("custom_generate: position_ids of your own are not supported; leave them out")


def _of_row(processors: LogitsProcessorList, row: int, rows: int, padding: list[int]) -> Processor:
    """Return one processor that treats nodes of a tree as `processors` treat one row of a batch.

    Args:
        row: number of the row. rows: number of rows of the batch.
        padding: ids that pad the row; they are put before every history, because some processors count from there.
    """
    own: Callable[..., Tensor] = LogitsProcessorList(_at(p, row, rows) if _knows_rows(p) else p for p in processors)

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        before = torch.tensor(padding, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)
        return own(torch.cat([before, ids], dim=1), scores)

    return process


def _knows_rows(processor: Processor) -> bool:
    ignored = getattr(processor, "prompt_ignore_length", None)  # of the repetition penalty: may be one number per row
    return isinstance(processor, _BY_ROW) or isinstance(ignored, Tensor)


def _at(processor: Processor, row: int, rows: int) -> Processor:
    """Return a processor for nodes of one row; it calls `processor` for a batch that has the node in every row."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        nodes = zip(ids, scores, strict=True)
        return torch.stack([processor(i.repeat(rows, 1), s.repeat(rows, 1))[row] for i, s in nodes])

    return process


def _criterion(criteria: list, prompt: list[int]) -> Callable[[Sequence[int]], bool]:
    def ends(output: Sequence[int]) -> bool:
        ids = torch.tensor([[*prompt, *output]])
        return any(bool(torch.as_tensor(criterion(ids, None)).all()) for criterion in criteria)

    return ends
