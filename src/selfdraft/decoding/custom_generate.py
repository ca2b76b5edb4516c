"""Use a drafter in transformers: `model.generate(…, custom_generate=Drafting("prompt_lookup"))`."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.decoding.last_call import LastCall
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Drafter
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.engines.choice import EAGER, ENGINES, use_engine
from selfdraft.models.families.overrides import refuse_overrides
from selfdraft.models.forward.currency import Currency
from selfdraft.models.forward.target import Target
from selfdraft.models.forward.targets import refuse_undrivable, target_of
from selfdraft.models.loading.loading import StockModel
from selfdraft.models.measuring.profiling import costs_on
from selfdraft.models.reference.generate_call import GenerateCall, kept_back


@dataclass(frozen=True)
class _Prepared:
    """The objects that are built once per model. `currency` checks whether the model has changed since."""

    target: Target
    drafter: Drafter
    currency: Currency


class Drafting:
    """Decodes for `generate`, with any drafter. The model is not changed, because forwards run through light copies.

    Options of `generate` keep their meaning; options that cannot be honoured are refused. Give stop strings as a
    `StopStringCriteria` among the `stopping_criteria`, because transformers does not hand the tokenizer to a
    `custom_generate`.

    Keep the object: the model is prepared once, and again only when it has changed. Every call checks this by reading
    the weights that have packed copies, in less time than one forward. Threads that share an object take turns.

    Processors and criteria see the history of one node or answer at a time, so they must not keep state of their own.

    `selfdraft.Drafting` is this class with what is kept in files: artifacts, and the costs that were measured before.

    Attributes:
        last: what the last call accepted and how long it took; None before the first one and after one that failed.
    """

    def __init__(
        self, drafter: str = "prompt_lookup", *, engine: str = EAGER, packed: bool = True, **options: Any
    ) -> None:
        """Choose a drafter.

        Args:
            drafter: its name.
            engine: how layers are run: `eager`, `compiled` (as one graph, which is made at the first call, in seconds;
                float32 on a CPU) or `auto` (compiled where that is possible).
            packed: on a CPU, keep packed copies of the model's matrices: faster, but twice the memory.
            options: the drafter's options and its path's, as the YAML files under conf/drafter list them, and `path`,
                the name of another path.

        Raises:
            UserError: no such drafter, path or option, or one out of its range.
        """
        try:
            self.config, self.engine, self.packed = configured(drafter, **options), engine, packed
            if engine not in ENGINES:
                raise UserError(f"there is no engine {engine!r:.60}; choose one of {', '.join(ENGINES)}")
            if getattr(self.config, "learn", False):
                raise UserError("learn=True: only task=evaluate learns while it decodes; leave it out")
        except UserError as error:
            raise UserError(f"Drafting: {error}") from None
        self.last: LastCall | None = None
        self._prepared: _Prepared | None = None
        self._lock, self._running = threading.RLock(), False

    def __call__(
        self,
        model: StockModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        stream: Any = None,
        **others: Any,
    ) -> Tensor:
        """Decode; called by `generate`.

        Args:
            input_ids: (B, L), padded on the left.
            streamer, stream: receives the answer as it grows; `generate` has already put the prompt into `streamer`.

        Returns:
            (B, L + longest answer): prompts and answers, padded on the right.

        Raises:
            UserError: an option cannot be honoured, or the model cannot be driven.
        """
        with self._lock:
            if self._running:  # by this same thread, because others wait for the lock
                raise UserError("custom_generate: this Drafting is in the middle of a call; use another one inside")
            self._running, self.last = True, None
            try:
                current = self._current(model)
                call = GenerateCall.parse(input_ids, logits_processor, stopping_criteria, generation_config, others)
                streamer = kept_back("streamer") if streamer is None else streamer
                if streamer is not None and stream is not None:
                    raise UserError("custom_generate: give streamer= or stream=, not both")
                if stream is not None and len(call.rows) == 1:
                    stream.put(input_ids.cpu())  # as `generate` does with its own streamer: the prompt first
                streamer = stream if streamer is None else streamer
                if streamer is not None and len(call.rows) > 1:
                    raise UserError("custom_generate: a streamer takes one prompt, not a batch")
                return self._answers(current or self._prepare(model), call, input_ids, streamer)
            finally:
                self._running = False

    def _answers(self, prepared: _Prepared, call: GenerateCall, input_ids: Tensor, streamer: Any) -> Tensor:
        """Return the (B, L + longest answer) ids of prompts and answers; see `__call__`."""
        stopping = Stopping(call.eos, call.max_new_tokens, past_positions=True)
        decoder = Decoder(prepared.target, prepared.drafter, stopping, batch_size=len(call.rows))
        # The seeds come from torch's generator, as the draws of `generate` do; greedy decoding does not use it.
        sample = call.rows[0].rule.sample
        seeds = torch.randint(2**62, (len(call.rows),)).tolist() if sample else [0] * len(call.rows)
        requests = [
            Request(
                row.prompt,
                seed,
                key=b,
                rule=row.rule,
                stopping=replace(stopping, criterion=row.criterion),
            )
            for b, (row, seed) in enumerate(zip(call.rows, seeds, strict=True))
        ]
        answers: list[list[int]] = [[] for _ in requests]
        records: dict[int, Generation] = {}
        self._prepared = None  # after an exception requests are half done, so prepare anew
        for request, generation in decoder.run(requests):
            if streamer is not None:
                streamer.put(torch.tensor(generation.output[len(answers[0]) :]))
            answers[request.key], records[request.key] = generation.output.copy(), generation
        self._prepared, self.last = prepared, LastCall.of(list(records.values()))
        if streamer is not None:
            streamer.end()
        longest = max(map(len, answers))
        padded = [answer + [call.pad_id] * (longest - len(answer)) for answer in answers]
        return torch.cat([input_ids, input_ids.new_tensor(padded)], dim=1)

    def _current(self, model: StockModel) -> _Prepared | None:
        """Return what was prepared for the model as it is now; None if nothing was.

        A model that cannot be driven is refused here, before any option is looked at: for such families `generate`
        adds options of its own, and a message about one of them would mislead.

        Raises:
            UserError: the model cannot be driven.
        """
        refuse_overrides(model)
        if self._prepared is not None and self._prepared.currency.holds(model):
            return self._prepared
        self._prepared = None  # frees its memory before a new one is built
        refuse_undrivable(model)
        return None

    def _prepare(self, model: StockModel) -> _Prepared:
        target = target_of(model, packed=self.packed)
        use_engine(target, self.engine)
        currency = Currency(target)
        return _Prepared(target, drafter_for(target, self.config, self._costs(target)), currency)

    def _costs(self, target: Target) -> Costs:
        """Return what forwards of `target` cost; a curve is measured when it is first asked for."""
        return costs_on(target)
