"""The table of a sweep under launchers that are not ours: submitit's, Ray's, joblib's, Hydra's own.

These run a job somewhere else, perhaps on another machine, through `hydra.core.utils.run_job`, which calls `on_job_end`
there. So every job enters itself into the sweep's index and table. Our own launcher does that itself (launcher.py).
"""

from __future__ import annotations

import atexit
import contextlib
import json
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from selfdraft.app.sweeps.sweep_index import COMPLETED, SweepIndex, identity_of
from selfdraft.app.sweeps.sweep_report import report_of_sweep
from selfdraft.app.sweeps.sweep_table import SweepTable
from selfdraft.tracking.dashboards.run_label import SWEEP
from selfdraft.tracking.files.run_folder import Mark, refuse_foreign
from selfdraft.tracking.files.run_status import RunStatus

OURS = "ProcessLauncher"
AROUND = "hydra_plugins.selfdraft.ResumingLauncher"
LOCK = ".table.lock"  # in the sweep's folder; jobs that end at the same time wait for each other


class SweepCallback(Callback):
    """Marks the sweep's folder when a sweep begins, enters jobs that end, and prints the table last."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Mark the folder, and put `ResumingLauncher` around the launcher.

        The table is printed when this process ends, because Hydra ends it if a job has failed.

        Raises:
            UserError: the folder holds files that no sweep has written.
        """
        if config.hydra.launcher._target_.endswith(OURS):
            return
        folder = Path(config.hydra.sweep.dir).absolute()
        refuse_foreign(folder, SWEEP, "hydra.sweep.dir")
        Mark(SWEEP).write(folder)
        atexit.register(_show, folder)
        with read_write(config), open_dict(config):  # Hydra makes the launcher after this call
            config.hydra.launcher = {"_target_": AROUND, "_recursive_": False, "inner": config.hydra.launcher}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Enter the job that has ended in this process."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        folder = Path(config.hydra.sweep.dir).absolute()
        name = str(config.hydra.sweep.subdir)
        ended = RunStatus.read(folder / name)
        completed = job_return.status == JobStatus.COMPLETED
        reason = "" if completed else (ended.reason if ended else "") or _said(job_return)
        task: Any = OmegaConf.to_container(job_return.cfg, resolve=False) if job_return.cfg is not None else {}
        with FileLock(folder / LOCK):
            index = SweepIndex(folder)
            index.claim(identity_of(task), list(config.hydra.overrides.task), name)
            index.finish(name, COMPLETED if completed else "failed", reason, ended.seconds if ended else 0.0)
            table_of(folder).save()


def table_of(folder: Path) -> SweepTable:
    """Return the table of the jobs in the index of a sweep's folder."""
    table = SweepTable(folder)
    for number, (name, job) in enumerate(SweepIndex(folder).jobs.items()):
        result: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            result = json.loads((folder / name / "result.json").read_text(encoding="utf-8"))
        table.add(number, job.overrides, str(folder / name))
        table.enter(number, job.status, result, job.reason, job.seconds)
    return table


def _said(job: JobReturn) -> str:
    """Return the error that ended a job, as a line."""
    error = job._return_value
    return str(error).splitlines()[0] if isinstance(error, BaseException) and str(error) else type(error).__name__


def _show(folder: Path) -> None:
    table = table_of(folder)
    if table.rows:
        table.show()
        report_of_sweep(folder)
