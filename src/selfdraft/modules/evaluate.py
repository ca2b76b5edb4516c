"""Evaluation under a Lightning Trainer: every contender decodes every prompt, and the result is a line of a file."""

from __future__ import annotations

import resource
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from selfdraft.core.errors import UserError
from selfdraft.data.prompts import Prompt
from selfdraft.decoding.loop import Request
from selfdraft.models.forward.layered import layered
from selfdraft.modules.bench import DRAFTER, Bench, Measurement
from selfdraft.modules.online import OnlineLearner, learns
from selfdraft.modules.resuming import History, Resumed, keep_current
from selfdraft.tracking.files.records import PROMPTS, RecordFile, key, record_path
from selfdraft.tracking.files.run_folder import confirm
from selfdraft.tracking.numbers.lines import CONTENDERS, LEFT_OUT


class EvaluateModule(pl.LightningModule):
    """Decodes prompts and appends a line of prompts.jsonl for each turn as soon as the turn is done.

    A step is a list of prompts that are decoded together, in batches of the bench's size.
    """

    def __init__(
        self,
        build: Callable[[torch.device], Bench],
        *,
        prompts: Sequence[Prompt],
        folder: Path,
        repeats: int,
        seed: int,
        part: Callable[[Measurement], dict] = Measurement.line,
        shared: bool = False,
        tell: Callable[[Resumed], None] = lambda resumed: None,
    ) -> None:
        """Prepare an evaluation.

        Args:
            build: makes the bench on this process's device. Called by each rank in its own process.
            prompts: those of all ranks: one that is too long for the model is refused before any is decoded.
            folder: the run's folder. Turns that its prompts.jsonl holds already are not decoded again.
            repeats: how often each contender decodes each prompt.
            seed: the run's seed.
            part: what a line holds of a measurement; with `output_ids`, of which the line has the text too.
            shared: all ranks decode every prompt together (tree parallelism), and only rank 0 records them.
            tell: called on rank 0 with the counts of an interrupted run's turns.
        """
        super().__init__()
        self.build, self.prompts, self.folder, self.repeats, self.seed = build, prompts, folder, repeats, seed
        self.part, self.shared, self.tell = part, shared, tell

    def setup(self, stage: str) -> None:
        """Load the model on this rank's device, and read what an interrupted run has finished.

        Raises:
            UserError: a prompt has more tokens than the model has positions.
        """
        self.bench = self.build(self.trainer.strategy.root_device)
        self.learner = self._learner()
        self._refuse_long_prompts()
        if self.global_rank == 0:
            confirm(self.folder, {"model": self.bench.fingerprint})
            self.tell(keep_current(self.folder, self.prompts, self.bench.chat.encode, self._answer, name=PROMPTS))
        barrier = self.trainer.strategy.barrier
        barrier("rank 0 has gathered the finished lines")
        self.finished = {key(line): line for line in RecordFile(record_path(self.folder)).read()}
        barrier("every rank has read them, and rank 0 may append")
        self.record = RecordFile(record_path(self.folder, self.global_rank))

    def on_test_start(self) -> None:
        """Let every contender answer once, unmeasured."""
        self.bench.warm_up()

    def test_step(self, prompts: list[Prompt], batch_idx: int) -> Any:
        """Decode the first turn of these prompts, then the second of those that have one, and so on; return the lines.

        Conversations continue with the baseline's answers, whatever the drafter; their length is not known before.
        A turn for which the model has no positions left is left out, and so are later ones; a line records each.
        """
        histories: dict[str, History] = {prompt.id: list(prompt.history) for prompt in prompts}
        lines = []
        for turn in range(max(len(prompt.turns) for prompt in prompts)):
            speaking = [prompt for prompt in prompts if turn < len(prompt.turns)]
            for prompt in speaking:
                histories[prompt.id].append(("user", prompt.turns[turn]))
            todo = [prompt for prompt in speaking if (prompt.id, turn) not in self.finished]
            for line in self._measure(todo, turn, histories, position=batch_idx + turn):
                if not self.shared or self.global_rank == 0:
                    self.record.append(line)
                self.finished[key(line)] = line
            for prompt in speaking:
                line = self.finished[prompt.id, turn]
                if LEFT_OUT not in line:
                    histories[prompt.id].append(("assistant", self._answer(line)))
                lines.append(line)
        return lines

    def _learner(self) -> OnlineLearner | None:
        """Return what trains the drafter's weights between prompts; None if they stay as they are."""
        decoder = self.bench.decoders.get(DRAFTER)
        if decoder is None or not learns(decoder.drafter.config):
            return None
        return OnlineLearner(layered(decoder.target), decoder.drafter, seed=self.seed)

    def _answer(self, line: Mapping[str, Any]) -> str:
        """Return the baseline's answer, with which the conversation continues."""
        return self.bench.chat.decode(line.get("baseline_output_ids", line["output_ids"]))

    def _refuse_long_prompts(self) -> None:
        positions = self.bench.baseline.target.max_positions
        for prompt in self.prompts:
            length = len(self.bench.chat.encode(prompt.beginning))
            if length >= positions:
                raise UserError(
                    f"prompt {prompt.id} has {length} tokens, but this model has {positions} positions: "
                    "leave it out, e.g. with dataset.categories or dataset.limit"
                )

    def _measure(
        self, prompts: Sequence[Prompt], turn: int, histories: dict[str, History], position: int
    ) -> Iterator[dict]:
        fitting, requests = [], []
        for prompt in prompts:
            if LEFT_OUT in self.finished.get((prompt.id, turn - 1), {}):
                yield self._left_out(prompt, turn, f"turn {turn} was left out")
                continue
            request = self._request(prompt, turn, histories[prompt.id])
            length, positions = len(request.prompt), self.bench.baseline.target.max_positions
            if length >= positions:
                reason = f"the conversation has {length} tokens up to here, but this model has {positions} positions"
                yield self._left_out(prompt, turn, reason)
                continue
            fitting.append(prompt)
            requests.append(request)
        measured = self.bench.measure(requests, repeats=self.repeats, position=position)
        for prompt, done in zip(fitting, measured, strict=True):
            line = self._line(prompt, turn, done)
            if self.learner is not None:  # after all contenders have decoded: no timed seconds are among these
                line["learning"] = self.learner.observe(done.runs[DRAFTER][0])
            yield line

    def _left_out(self, prompt: Prompt, turn: int, reason: str) -> dict:
        return {**self._about(prompt, turn), LEFT_OUT: reason, "rank": self.global_rank}

    def _about(self, prompt: Prompt, turn: int) -> dict:
        return {
            "id": prompt.id,
            "category": prompt.category,
            "family": prompt.family,
            "turn": turn,
            "prompt_text": prompt.turns[turn],
        }

    def _request(self, prompt: Prompt, turn: int, history: History) -> Request:
        name = f"{prompt.id} (turn {turn + 1})"
        # Each turn has its own seed, so its draws do not depend on its rank or on what runs before or beside it.
        return Request(self.bench.chat.encode(history), zlib.crc32(f"{self.seed}/{name}".encode()), name)

    def _line(self, prompt: Prompt, turn: int, done: Measurement) -> dict:
        part = self.part(done)
        for other in part.get(CONTENDERS, {}).values():
            if "output_ids" in other:  # it differs from the baseline's
                other["text"] = self.bench.chat.decode(other["output_ids"])
        if "baseline_output_ids" in part:
            part["baseline_text"] = self.bench.chat.decode(part["baseline_output_ids"])
        return {
            **self._about(prompt, turn),
            "text": self.bench.chat.decode(part["output_ids"]),
            **part,
            "peak_memory_mb": max(peak_memory_mb(self.device), *self.bench.memory.peaks.values()),
            "peak_memory_by_phase_mb": dict(self.bench.memory.peaks),
            "rank": self.global_rank,
        }


def peak_memory_mb(device: torch.device) -> float:
    """Return this process's peak memory so far in MB (10^6 bytes): of the GPU if it runs on one, else of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
