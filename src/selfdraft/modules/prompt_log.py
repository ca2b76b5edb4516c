"""Logs every prompt as soon as it is measured."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from selfdraft.core.messages import harmless
from selfdraft.tracking.dashboards.curve import Curve
from selfdraft.tracking.dashboards.running import TURN, after_a_turn
from selfdraft.tracking.files.records import Line
from selfdraft.tracking.numbers.lines import measured


class PromptLog(pl.Callback):
    """Gives rank 0's prompts to a logger, between two prompts, when nothing is timed."""

    def __init__(self, logger: Logger | None, seed: int) -> None:
        """Prepare it; without a logger it does nothing. `seed` is that of the bootstrap."""
        self.curve, self.seed = Curve(logger, TURN, ("prompt/*", "running/*", "peak_memory_mb")), seed
        self.lines: list[Line] = []

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Log the turns of a step."""
        if self.curve.logger is None:
            return
        for line in measured(outputs):
            self.lines.append(line)
            with harmless("a turn was not logged"):
                self.curve.add(len(self.lines), after_a_turn(self.lines, self.seed))
