"""Calibration under a Lightning Trainer: score skip sets on the model's own answers, then decode with the best ones.

A candidate is scored without decoding. One parallel sparse forward per text, in blocks that see the full model's keys
before them, gives where the path would draft the right token and how confident it would be (`decoding.traces`).
Objectives:

* `matchness`: the share of tokens drafted right, at a given number of skipped sublayers (SWIFT's, arXiv 2410.06916).
* `tokens_per_s`: the highest rate over all draft lengths and confidence thresholds, predicted from the costs of
  attention, MLP, head and verification that are measured on this device at the start (`core.costmodel`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from selfdraft.core.costmodel import CostModel
from selfdraft.core.replay import agreement, best_choice
from selfdraft.core.skipset import SkipSet
from selfdraft.data.datamodule import as_dataset
from selfdraft.data.prompts import Prompt
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.traces import Tracer
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import drafter_for
from selfdraft.models.forward.layered import layered
from selfdraft.models.measuring.profiling import measure_parts
from selfdraft.modules.bench import Bench
from selfdraft.modules.search import Search
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.run_folder import confirm

OBJECTIVES = ("matchness", "tokens_per_s")
TEXTS, COSTS = "texts.json", "costs.json"


class CalibrateModule(pl.LightningModule):
    """Scores the candidates of a search; `check` then decodes with the best ones."""

    def __init__(
        self,
        build: Callable[[torch.device], Bench],
        make_search: Callable[[int, int, Callable[[int], SkipSet]], Search],
        *,
        prompts: Sequence[Prompt],
        folder: Path,
        objective: str,
        labels: dict[str, Any],
    ) -> None:
        """Prepare a calibration.

        Args:
            build: makes the bench on this process's device; its baseline writes the texts.
            make_search: makes the search from the number of layers, the rank, and `most_similar` (see `Search`).
            prompts: their first turns are answered to make the texts.
            folder: the run's folder. Texts, costs and scores that an earlier run left there are used again.
            objective: one of `OBJECTIVES`.
            labels: device, model and source of the cost model.
        """
        super().__init__()
        # After an interrupted run, so few candidates may be left that a process has none.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.build, self.make_search, self.labels = build, make_search, labels
        self.prompts, self.folder, self.objective = prompts, folder, objective

    def setup(self, stage: str) -> None:
        """Prepare texts and costs on every rank, and deal out the candidates that are left."""
        self.bench = self.build(self.trainer.strategy.root_device)
        self.target = self.bench.drafter.target
        barrier, first = self.trainer.strategy.barrier, self.global_rank == 0
        if first:
            confirm(self.folder, {"model": self.bench.fingerprint})
            self._prepare()
        barrier("rank 0 has written texts and costs, and made the study, with nobody else at work")
        if not first:
            self._prepare()
        left = self.search.remaining()
        barrier("every rank knows what is left, and may begin")
        self.indices = left[self.global_rank :: self.trainer.world_size]
        self.tracer = Tracer(self.target, self.texts, self.bench.drafter.rule)

    def test_dataloader(self) -> DataLoader[int]:
        """Return this rank's share of the remaining candidates' indices."""
        return DataLoader(as_dataset(self.indices), batch_size=1, collate_fn=itemgetter(0), num_workers=0)

    def test_step(self, index: int, batch_idx: int) -> dict[str, Any]:
        """Score one candidate."""
        candidate = self.search.candidate(index)
        value, facts = self.score(candidate.skip)
        self.search.tell(candidate, value, facts)
        return {"index": index, "value": value, **facts}

    def score(self, skip: SkipSet) -> tuple[float, dict[str, float]]:
        """Return a skip set's value under the objective, and facts: agreement, the best options, their speedup."""
        traces = self.tracer.traces(skip)
        choice = best_choice(traces, self.costs.forward, self.costs.sparse(skip)(1), self.costs.confidence_s)
        matchness = agreement(traces)
        rate = choice.speedup / self.costs.forward(1)
        facts = {
            "matchness": matchness,
            "draft_length": choice.draft_length,
            "min_confidence": choice.min_confidence,
            "predicted_speedup": choice.speedup,
        }
        return (matchness if self.objective == "matchness" else rate), facts

    def check(self, configs: Sequence[DrafterConfig]) -> Iterator[list[float]]:
        """Decode every prompt with each config, interleaved with the baseline.

        Yields:
            After every prompt, each config's speedup over the prompts so far.
        """
        base, costs = self.bench.baseline, self.bench.baseline.drafter.costs
        drafters = [drafter_for(self.target, config, costs) for config in configs]
        decoders = [base, *(Decoder(self.target, drafter, base.stopping, rule=base.rule) for drafter in drafters)]
        tokens, seconds = [0] * len(decoders), [0.0] * len(decoders)
        for decoder in decoders:
            decoder.decode(self.texts[0][0][-8:])  # the first forwards of a shape allocate memory and must not be timed
        for i, (prompt, _) in enumerate(self.texts):
            for turn in range(len(decoders)):
                which = (i + turn) % len(decoders)
                generation = decoders[which].decode(prompt)
                tokens[which] += generation.counts.new_tokens
                seconds[which] += generation.clock.decode_s
            rates = [t / s for t, s in zip(tokens, seconds, strict=True)]
            yield [rate / rates[0] for rate in rates[1:]]

    def _prepare(self) -> None:
        """Read texts, costs and study from the folder; make those that are missing first."""
        self.texts = self._kept(TEXTS, self._write_texts)
        length = sum(len(prompt) + len(output) for prompt, output in self.texts) // len(self.texts)
        costs = self._kept(COSTS, lambda: measure_parts(layered(self.target), context=length, **self.labels).to_dict())
        self.costs = CostModel.from_dict(costs)
        self.search = self.make_search(
            self.costs.layers, self.global_rank, lambda count: self.tracer.most_similar(count)
        )

    def _write_texts(self) -> list[list[list[int]]]:
        """Return the token ids of prompt and answer of each conversation's first turn."""
        texts = []
        for prompt in self.prompts:
            ids = self.bench.chat.encode(prompt.beginning)
            texts.append([ids, self.bench.baseline.decode(ids, key=prompt.id).output])
        return texts

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the content of the JSON file `name`, which is first written with `make` if it does not exist."""
        path = self.folder / name
        if not path.exists():
            write_json_atomic(path, make())
        return json.loads(path.read_text(encoding="utf-8"))
