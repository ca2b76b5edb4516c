"""What a fork of a sweep's process does to be a job: what Hydra's `run` does, without composing once more.

A command reads its options and composes its configuration three times: to check it, to learn the mode, and to run. For
the jobs of a sweep, the sweep's process has done that already. It took a quarter of a tiny job's time.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import run_and_report
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from selfdraft.app.terminal.command_line import literal

if TYPE_CHECKING:
    from selfdraft.app.sweeps.kept_model import KeptModel

PROGRAM, RUNS = "selfdraft.app.main", "selfdraft.app.run"  # our command, and what its runs import


class Forks:
    """The jobs of a sweep as forks of its process, which makes the imports, and loads a model that jobs share."""

    def __init__(self, loader: ConfigLoader, task_function: TaskFunction) -> None:
        """Prepare them.

        Args:
            loader: has composed the jobs' configurations.
            task_function: runs one.
        """
        self.loader, self.task_function = loader, task_function
        self.kept: KeptModel | None = None

    def work_of(self, composed: DictConfig, folder: str, following: DictConfig | None) -> Callable[[], None]:
        """Return what the next fork of this process has to do to be a job.

        Args:
            composed: the job's configuration, with Hydra's part.
            folder: where its results go.
            following: the configuration of the job after it, if there is one.
        """
        within: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        if PROGRAM in sys.modules:  # imported here, because the sweep itself needs neither
            importlib.import_module(RUNS)
            from selfdraft.app.sweeps.kept_model import KeptModel, model_of

            self.kept = self.kept or KeptModel()
            model = model_of(composed)
            self.kept.prepare(model, None if following is None else model_of(following))
            within = partial(self.kept.offered_to, model)
        return partial(self._run, composed, folder, within)

    def _run(
        self, composed: DictConfig, folder: str, within: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        with within():
            run_and_report(partial(self._run_composed, composed, folder))

    def _run_composed(self, config: DictConfig, folder: str) -> None:
        """Do what Hydra's `run` does after composing."""
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.mode = RunMode.RUN  # the sweep's own, or that of a configuration file, may be MULTIRUN
            config.hydra.run.dir = literal(folder)
        callbacks, name = Callbacks(config), config.hydra.job.config_name
        callbacks.on_run_start(config=config, config_name=name)
        done = run_job(
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(config_loader=self.loader, callbacks=callbacks),
        )
        callbacks.on_run_end(config=config, config_name=name, job_return=done)
        _ = done.return_value  # raises the error that ended the job, if there was one
