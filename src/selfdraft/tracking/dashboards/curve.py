"""Curves: numbers that a logger gets while a task works, along an axis of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pytorch_lightning.loggers import Logger, WandbLogger

from selfdraft.core.messages import harmless
from selfdraft.tracking.files.rank import process_rank


class Curve:
    """Gives numbers to a logger as they come, on rank 0, so that one can watch a task that takes long.

    The first failure is a warning, and nothing is logged after it: no run ends because of its logger.
    """

    def __init__(self, logger: Logger | None, axis: str, names: Sequence[str]) -> None:
        """Prepare a curve; without a logger it does nothing.

        Args:
            axis: what is counted, such as "turn". W&B plots the numbers over it; other loggers take it as their step.
            names: of the numbers; one that ends with ``*`` stands for all that begin so.
        """
        self.logger, self.axis = logger if process_rank() == 0 else None, axis
        self._named: set[str] = set()
        with self._until_it_fails() as used:
            if isinstance(used, WandbLogger):
                used.experiment.define_metric(axis, hidden=True, summary="none")
                for name in names:
                    used.experiment.define_metric(name, step_metric=axis, summary="none")

    def add(self, at: int, numbers: Mapping[str, float | None]) -> None:
        """Log numbers at a place on the axis; those that are None are left out."""
        known = {name: float(value) for name, value in numbers.items() if value is not None}
        with self._until_it_fails() as used:
            if isinstance(used, WandbLogger):
                # By its own name as well: `wandb leet` knows no patterns, and would plot it over Lightning's steps.
                for name in known.keys() - self._named:
                    used.experiment.define_metric(name, step_metric=self.axis, summary="none")
                self._named |= known.keys()
                used.log_metrics({**known, self.axis: at})
            elif used is not None:
                used.log_metrics(known, at)

    @contextmanager
    def _until_it_fails(self) -> Iterator[Logger | None]:
        used, self.logger = self.logger, None
        with harmless(f"numbers by {self.axis} are not logged any more, the run goes on"):
            yield used
            self.logger = used
