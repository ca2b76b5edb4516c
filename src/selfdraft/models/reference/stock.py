"""transformers' own `generate` on the untouched stock model: a reference that shares no code with ours."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from selfdraft.models.families.anatomy import position_limit, text_config
from selfdraft.models.loading.loading import LoadedModel
from selfdraft.models.reference.stock_forward import generate

REFERENCES = ("transformers_greedy", "transformers_prompt_lookup")
PROMPT_LOOKUP_TOKENS = 10  # the value in transformers' documentation

# The weight classes of decoders outside SelfDraft, compared with our target. Only texts of the first two are judged.
SAME_VALUES = "same values"  # every weight has our weight's very value, in as many bits
IN_4_BITS = "same values, in 4 bits"  # likewise, but fewer bytes are read for each token than by ours
OTHER_VALUES = "other values"  # weights that were rounded otherwise, or a file of the user's, which nobody has compared
UNKNOWN_VALUES = "unknown"  # a server does not say what it has loaded
JUDGED = (SAME_VALUES, IN_4_BITS)


@dataclass(frozen=True)
class StockGeneration:
    """The output of `generate`, and how long it took after its first tokens.

    Attributes:
        output: ids, up to and including the end of sequence.
        decoded: how many of them `decode_s` covers; those of the first forward belong to the prefill.
        decode_s: seconds from the first tokens to the end.
        latency_s: seconds from the prompt to the end.
        failed: why there is no answer; empty if there is one.
    """

    output: list[int]
    decoded: int
    decode_s: float
    latency_s: float = 0.0
    failed: str = ""


class StockGenerate:
    """Greedy `generate`, plain or with its prompt lookup, limited to the model's positions like our own decoding.

    Attributes:
        weights: its weight class, `SAME_VALUES`, because it is the target's own model.
        judged: whether its texts are compared with ours, as those of the same values are.
        load_s, peak_memory_mb: None, because it shares this process and its weights with our own decoders.
    """

    weights = SAME_VALUES
    judged = True
    load_s: float | None = None
    peak_memory_mb: float | None = None

    def __init__(self, loaded: LoadedModel, name: str, max_new_tokens: int) -> None:
        self.model: PreTrainedModel = loaded.model
        self.positions = position_limit(text_config(loaded.model))
        # The checkpoint's own config is not used: it may have penalties and bans that greedy decoding must not have.
        self.config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(loaded.eos) or None,
            pad_token_id=min(loaded.eos, default=0),
            prompt_lookup_num_tokens=PROMPT_LOOKUP_TOKENS if name == "transformers_prompt_lookup" else None,
        )

    @torch.inference_mode()
    def decode(self, prompt: Sequence[int]) -> StockGeneration:
        """Answer one prompt."""
        config = copy.copy(self.config)
        config.max_new_tokens = min(config.max_new_tokens, self.positions - len(prompt))
        watch = _Stopwatch()
        written = generate(self.model, prompt, config, streamer=watch)
        output = written[0, len(prompt) :].tolist()
        return StockGeneration(output, len(output) - watch.first_tokens, watch.decode_s, watch.latency_s)


@dataclass
class _Stopwatch(BaseStreamer):
    """Times `generate`: it gets the prompt first, then the tokens as they come. The first of these end the prefill."""

    times: list[float] = field(default_factory=list)
    first_tokens: int = 0

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) == 2:
            self.first_tokens = value.numel()

    def end(self) -> None:
        self.times.append(time.perf_counter())

    @property
    def decode_s(self) -> float:
        return self.times[-1] - self.times[1]

    @property
    def latency_s(self) -> float:
        return self.times[-1] - self.times[0]
