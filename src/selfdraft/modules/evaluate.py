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
from selfdraft.modules.bench import Bench
from selfdraft.tracking.records import RecordFile, key, record_path

WARM_UP = [1, 2, 3, 4, 5, 6, 7, 8]  # any ids: the first forwards of a process allocate, and must not be timed


class EvaluateModule(pl.LightningModule):
    """Decodes prompts and appends a line of prompts.jsonl for each turn as soon as the turn is done."""

    def __init__(
        self,
        build: Callable[[torch.device], Bench],
        *,
        prompts: Sequence[Prompt],
        folder: Path,
        repeats: int,
        seed: int,
    ) -> None:
        """Prepare an evaluation.

        Args:
            build: makes the bench on this process's device. Called by each rank in its own process.
            prompts: all of them, to refuse one that the model cannot take before any is decoded.
            folder: of the run. Turns that its prompts.jsonl holds already are not decoded again.
        """
        super().__init__()
        self.build, self.prompts, self.folder, self.repeats, self.seed = build, prompts, folder, repeats, seed

    def setup(self, stage: str) -> None:
        """Load the model where this rank runs it, and see what an interrupted run has finished.

        Raises:
            UserError: a prompt that is longer than the model's positions.
        """
        self.bench = self.build(self.trainer.strategy.root_device)
        self._refuse_long_prompts()
        barrier = self.trainer.strategy.barrier
        barrier("rank 0 has gathered the finished lines")
        self.finished = {key(line): line for line in RecordFile(record_path(self.folder)).read()}
        barrier("every rank has read them, and rank 0 may append")
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

    def _refuse_long_prompts(self) -> None:
        positions = self.bench.drafter.target.max_positions
        for prompt in self.prompts:
            length = len(self.bench.chat.encode([("user", prompt.turns[0])]))
            if length >= positions:
                raise UserError(
                    f"prompt {prompt.id} has {length} tokens, but this model has {positions} positions: "
                    "leave it out, e.g. with dataset.categories or dataset.limit"
                )

    def _measure(self, prompt: Prompt, turn: int, history: list[tuple[str, str]], position: int) -> dict:
        name = f"{prompt.id} (turn {turn + 1})"
        # A generator of its own for each turn: its draft is the same whatever ran before, on whatever rank.
        seed = zlib.crc32(f"{self.seed}/{name}".encode())
        ids = self.bench.chat.encode(history)
        done = self.bench.measure(ids, repeats=self.repeats, position=position, seed=seed, key=name)
        return {
            "id": prompt.id,
            "category": prompt.category,
            "family": prompt.family,
            "turn": turn,
            "prompt_text": history[-1][1],
            "text": self.bench.chat.decode(done.drafter.output),
            **done.line(),
            "peak_memory_mb": max(peak_memory_mb(self.device), *self.bench.memory.peaks.values()),
            "peak_memory_by_phase_mb": dict(self.bench.memory.peaks),
            "rank": self.global_rank,
        }


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held so far, in MB (10^6 bytes): of the GPU where it runs on one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
