"""Logs every prompt as soon as it is measured."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, WandbLogger

from selfdraft.core.messages import harmless
from selfdraft.tracking.lines import measured
from selfdraft.tracking.records import Line
from selfdraft.tracking.running import TURN, after_a_turn


class PromptLog(pl.Callback):
    """Gives rank 0's prompts to a logger, between two prompts, when nothing is timed."""

    def __init__(self, logger: Logger | None, seed: int) -> None:
        """Prepare it; without a logger it does nothing. `seed` is that of the bootstrap."""
        self.logger, self.seed = logger, seed
        self.lines: list[Line] = []

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Log the turns of a step. The first failure is a warning, and then no turn is logged any more."""
        if self.logger is None or not trainer.is_global_zero:
            return
        logger, self.logger = self.logger, None
        with harmless("prompts are not logged any more, the run goes on"):
            for line in measured(outputs):
                self.lines.append(line)
                numbers, turn = after_a_turn(self.lines, self.seed), len(self.lines)
                if isinstance(logger, WandbLogger):
                    logger.log_metrics({**numbers, TURN: turn})
                else:
                    logger.log_metrics(numbers, turn)
            self.logger = logger
