"""Drafting for users of transformers: `model.generate(…, custom_generate=Drafting("prompt_lookup"))`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from selfdraft.core.errors import UserError
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters import DRAFTERS, Drafter
from selfdraft.models.generate_call import GenerateCall
from selfdraft.models.target import Target


class Drafting:
    """Decodes for `generate`, with any drafter. The model stays as it is: it is driven through light copies.

    Options of `generate` mean what they always mean; what cannot be honoured is refused. transformers keeps two
    arguments from every `custom_generate`: give a streamer as `stream=`, and stop strings as a `StopStringCriteria`
    among the `stopping_criteria`.

    Processors and criteria see the history of one node or answer at a time, so they must not keep state of their own.
    """

    def __init__(self, drafter: str = "prompt_lookup", *, packed: bool = True, **options: Any) -> None:
        """Choose a drafter.

        Args:
            drafter: its name. options: what its YAML under conf/drafter lists.
            packed: on a CPU, keep packed copies of the model's matrices: faster, twice the memory.

        Raises:
            UserError: no such drafter or option, or one out of its range.
        """
        if drafter not in DRAFTERS:
            raise UserError(f"Drafting: there is no drafter '{drafter}'; choose one of {', '.join(DRAFTERS)}")
        config = DRAFTERS[drafter].Config
        known = [f.name for f in fields(config) if f.name != "name"]
        unknown = sorted(options.keys() - set(known))
        if unknown:
            raise UserError(
                f"Drafting: drafter '{drafter}' has no option '{unknown[0]}'; there are {', '.join(known) or 'none'}"
            )
        self.name, self.config, self.packed = drafter, config(**options), packed
        self._target: Target | None = None
        self._drafter: Drafter | None = None
        self._weights: tuple = ()

    def __call__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        stream: Any = None,
        **others: Any,
    ) -> Tensor:
        """What `generate` calls.

        Args:
            input_ids: (B, L), padded on the left.

        Returns:
            (B, L + longest answer): prompts and answers, padded on the right.

        Raises:
            UserError: an option that cannot be honoured, or a model that cannot be driven.
        """
        call = GenerateCall.parse(input_ids, logits_processor, stopping_criteria, generation_config, others)
        streamer = streamer or stream
        if streamer is not None and len(call.rows) > 1:
            raise UserError("custom_generate: a streamer takes one prompt, not a batch")
        if stream is not None:
            stream.put(input_ids.cpu())  # as `generate` does with its own streamer: the prompt first
        decoder = self._decoder(model, call)
        # The draws come from torch's generator, as they do in `generate`; greedy decoding leaves it alone.
        sample = call.rows[0].rule.sample
        seeds = torch.randint(2**62, (len(call.rows),)).tolist() if sample else [0] * len(call.rows)
        requests = [
            Request(
                row.prompt,
                seed,
                key=b,
                rule=row.rule,
                stopping=Stopping(call.eos, call.max_new_tokens, criterion=row.criterion),
            )
            for b, (row, seed) in enumerate(zip(call.rows, seeds, strict=True))
        ]
        answers: list[list[int]] = [[] for _ in requests]
        for request, generation in decoder.run(requests):
            if streamer is not None:
                streamer.put(torch.tensor(generation.output[len(answers[0]) :]))
            answers[request.key] = generation.output.copy()
        if streamer is not None:
            streamer.end()
        longest = max(map(len, answers))
        padded = [answer + [call.pad_id] * (longest - len(answer)) for answer in answers]
        return torch.cat([input_ids, input_ids.new_tensor(padded)], dim=1)

    def _decoder(self, model: nn.Module, call: GenerateCall) -> Decoder:
        """Target and drafter are made once, and again when another model comes or its weights were changed."""
        # Packed matrices are copies: training a model between two calls must not leave them behind.
        weights = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
        if self._target is None or self._target.model is not model or self._weights != weights:
            self._target = Target(model, packed=self.packed)
            self._drafter = DRAFTERS[self.name](self._target, self.config)
            self._weights = weights
        assert self._drafter is not None
        stopping = Stopping(call.eos, call.max_new_tokens)
        return Decoder(self._target, self._drafter, stopping, batch_size=len(call.rows))
