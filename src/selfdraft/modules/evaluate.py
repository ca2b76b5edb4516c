"""Evaluation under a Lightning Trainer: every prompt is decoded by every contender and leaves a line behind."""

from __future__ import annotations

import resource
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch

from selfdraft.core.errors import UserError
from selfdraft.data.prompts import Prompt
from selfdraft.modules.bench import DRAFTER, Bench
from selfdraft.tracking.records import RecordFile, record_path

WARM_UP = [1, 2, 3, 4, 5, 6, 7, 8]  # any ids: the first forwards of a process allocate, and must not be timed


class EvaluateModule(pl.LightningModule):
    """Decodes prompts and appends a line of prompts.jsonl for each turn as soon as the turn is done."""

    def __init__(
        self,
        build: Callable[[torch.device], Bench],
        *,
        folder: Path,
        finished: Sequence[dict],
        repeats: int,
        seed: int,
    ) -> None:
        """Prepare an evaluation.

        Args:
            build: makes the bench on this process's device. Called by each rank in its own process.
            folder: of the run.
            finished: lines that an earlier, interrupted run has left: those turns are not decoded again.
        """
        super().__init__()
        self.build, self.folder, self.repeats, self.seed = build, folder, repeats, seed
        self.finished = {(line["id"], line["turn"]): line for line in finished}
        self.bench: Bench | None = None

    def setup(self, stage: str) -> None:
        """Load the model where this rank runs it."""
        self.bench = self.build(self.trainer.strategy.root_device)
        self.record = RecordFile(record_path(self.folder, self.global_rank))

    def on_test_start(self) -> None:
        """One short decode of every contender, unmeasured."""
        for name in self.bench.order(0):
            self.bench.decode(name, WARM_UP, seed=0, key="warm-up")

    def test_step(self, prompt: Prompt, batch_idx: int) -> list[dict]:
        """All turns of one prompt. The conversation goes on with the baseline's answers, whatever the drafter is."""
        history: list[tuple[str, str]] = []
        lines = []
        for turn, text in enumerate(prompt.turns):
            history.append(("user", text))
            line = self.finished.get((prompt.id, turn))
            if line is None:
                line = self._measure(prompt, turn, history, position=batch_idx + turn)
                self.record.append(line)
            lines.append(line)
            answer = line.get("baseline_output_ids", line["output_ids"])
            history.append(("assistant", self.bench.chat.decode(answer)))
        return lines

    def _measure(self, prompt: Prompt, turn: int, history: list[tuple[str, str]], position: int) -> dict:
        key = f"{prompt.id} (turn {turn + 1})"
        # A generator of its own for each prompt: its draft is the same whatever ran before, on whatever rank.
        seed = zlib.crc32(f"{self.seed}/{key}".encode())
        ids = self.bench.chat.encode(history)
        try:
            done = self.bench.measure(ids, repeats=self.repeats, position=position, seed=seed, key=key)
        except UserError as error:
            raise UserError(f"{error}. Leave it out, e.g. with dataset.categories or dataset.limit") from error
        return {
            "id": prompt.id,
            "category": prompt.category,
            "family": prompt.family,
            "turn": turn,
            "prompt_text": history[-1][1],
            "text": self.bench.chat.decode(done.drafter.output),
            **done.line(),
            "peak_memory_mb": peak_memory_mb(self.device),
            "rank": self.global_rank,
        }


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held so far, in MB (10^6 bytes): of the GPU where it runs on one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


__all__ = ["DRAFTER", "EvaluateModule", "peak_memory_mb"]
