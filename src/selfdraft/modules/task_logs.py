"""Log what tasks other than evaluations do, as they do it: a candidate, a text or a step at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from selfdraft.decoding.record import Generation
from selfdraft.models.families.parts import attribute
from selfdraft.modules.search import Search
from selfdraft.tracking.dashboards.curve import Curve
from selfdraft.tracking.dashboards.running import after_a_step


class CandidateLog(pl.Callback):
    """Gives rank 0's candidates of a calibration to a logger, each with the best value so far."""

    def __init__(self, logger: Logger | None) -> None:
        """Prepare it; without a logger it does nothing."""
        self.curve, self.best = Curve(logger, "candidate", ("candidate/*", "best/*")), float("-inf")

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin with the best value that an interrupted run has found."""
        found = attribute(module, "search", Search).history()
        self.best = max((line["value"] for line in found), default=self.best)

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Log a candidate at its index."""
        self.best = max(self.best, outputs["value"])
        numbers = {f"candidate/{name}": value for name, value in outputs.items() if name != "index"}
        self.curve.add(outputs["index"], {**numbers, "best/value": self.best})


class TextLog:
    """Gives the texts that a run writes to a logger, with the speed so far."""

    def __init__(self, logger: Logger | None) -> None:
        """Prepare it; without a logger it does nothing."""
        self.curve = Curve(logger, "text", ("text/*", "running/*"))
        self.texts = self.tokens = self.forwards = 0
        self.seconds = 0.0

    def add(self, line: Mapping[str, Any]) -> None:
        """Log a line of texts.jsonl. In a batch, the seconds of a text are its share of the time that passed."""
        tokens, seconds, forwards = len(line["output_ids"]), line["decode_s"], line["target_forwards"]
        self.texts += 1
        self.tokens += tokens
        self.seconds += seconds
        self.forwards += forwards
        self.curve.add(
            self.texts,
            {
                "text/tokens": tokens,
                "text/tokens_per_forward": tokens / forwards if forwards else None,
                "running/tokens": self.tokens,
                "running/tokens_per_s": self.tokens / self.seconds if self.seconds else None,
                "running/tokens_per_forward": self.tokens / self.forwards if self.forwards else None,
            },
        )


def logged_steps(steps: Iterable[tuple[Any, Generation]], logger: Logger | None) -> Iterator[Generation]:
    """Yield one answer as it is after each of its steps, and give the step's numbers to a logger.

    Args:
        steps: of `Decoder.run` for a single request. Steps are timed one by one, so logging between them costs none of
            the measured seconds.
    """
    curve = Curve(logger, "step", ("step/*", "running/*"))
    for _, generation in steps:
        curve.add(len(generation.steps), after_a_step(generation))
        yield generation
