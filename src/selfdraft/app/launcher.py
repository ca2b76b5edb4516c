"""A Hydra launcher that runs every job of a multirun in its own process.

Hydra's own launcher runs the jobs of `python run.py -m …` inside one process. Under DDP, Lightning starts its ranks by
running *the same command line again*, so there every rank would start the whole sweep. Here a job is an ordinary
`python run.py <its overrides> hydra.run.dir=<its folder>`: DDP sees a single run, memory is freed between jobs, and
a job that crashes does not affect the others. Its results are read from `result.json` in its folder.

`override hydra/launcher: process` selects it; src/hydra_plugins/selfdraft.py makes that name known to Hydra.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from selfdraft.app.signals import INTERRUPTED, interrupted_by
from selfdraft.app.sweep_report import report_of_sweep
from selfdraft.app.sweep_table import SweepTable
from selfdraft.tracking.run_folder import Mark, refuse_foreign

log = logging.getLogger(__name__)

# Settings of the whole sweep: a job that inherited them would start a sweep again, or write to another folder.
SWEEP_ONLY = ("hydra.mode", "hydra.run.", "hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher")
SWEEP = "sweep"  # the task in the mark of a sweep's folder
GRACE_S = 15.0  # seconds for a job to close its files and its W&B run before it gets a harsher signal


class JobFailed(CompactHydraException):
    """Tells the sweeper that jobs failed. Hydra prints a "compact" exception as one line instead of a traceback."""


class Job(JobReturn):
    """A job whose configuration is composed, so that these parts of it are known."""

    overrides: Sequence[str]
    hydra_cfg: DictConfig
    working_dir: str


class ProcessLauncher(Launcher):
    """Runs jobs one after another, each in its own process, and keeps the sweep's table up to date."""

    def __init__(self, command: Sequence[str] = (), keep_going: bool = True) -> None:
        self.command = list(command) or entry_command()
        self.keep_going = keep_going

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's context and configuration, and mark the sweep's folder before Hydra writes there.

        The task function is not used: the job's process finds it itself.

        Raises:
            UserError: the folder holds files that no sweep has written.
        """
        self.context, self.config = hydra_context, config
        self.table = SweepTable(Path(config.hydra.sweep.dir).absolute())
        refuse_foreign(self.table.folder, SWEEP, "hydra.sweep.dir")
        Mark(SWEEP).write(self.table.folder)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs. If a sweeper works in several batches (Optuna), all of them go into one table."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        self.table.folder.mkdir(parents=True, exist_ok=True)
        jobs = [self._compose(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        for job in jobs:
            self.table.add(job.hydra_cfg.hydra.job.num, job.overrides, job.working_dir)

        failed: list[str] = []
        # SIGTERM (a scheduler) and SIGHUP (a closed terminal) interrupt as well, so that no job is orphaned.
        with interrupted_by(signal.SIGTERM, signal.SIGHUP):
            for position, job in enumerate(jobs, start=1):
                number = job.hydra_cfg.hydra.job.num
                log.info(f"Job {number} ({position} of {len(jobs)}): {shlex.join(job.overrides)}")
                try:
                    status = self._run(job)
                except KeyboardInterrupt:
                    self.table.finish(number, "interrupted")
                    self.table.show()
                    log.error(f"Stopped during job {number}; jobs that had finished keep their results")
                    sys.exit(INTERRUPTED)
                if status != 0:
                    failed.append(f"{number} ({describe_exit(status)})")
                    if not self.keep_going:
                        break
        self.table.show()
        report_of_sweep(self.table.folder)
        for job in jobs:
            if job.status == JobStatus.FAILED:  # each lists all failures: Hydra prints only the first exception
                job.return_value = JobFailed(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}")
        return [job for job in jobs if job.status != JobStatus.UNKNOWN]

    def _compose(self, number: int, overrides: Sequence[str]) -> Job:
        """Return the job with its configuration and folder, composed as Hydra's own launcher does."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        outer = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)  # `sweep.subdir` may contain ${hydra:job.num}
            folder = self.table.folder / str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = outer
        with read_write(config.hydra.runtime), open_dict(config):
            config.hydra.runtime.output_dir = str(folder)
            task_config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return Job(
            overrides=list(overrides),
            cfg=task_config,
            hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
            working_dir=str(folder),
            task_name=config.hydra.job.name,
        )

    def _run(self, job: Job) -> int:
        """Run one job to its end, put its result into the table and into `job`, and return its exit status."""
        result_file = Path(job.working_dir) / "result.json"
        before = fingerprint(result_file)
        status = run_to_end([*self.command, *self._arguments(job)])
        # A failed job may have a result (a mismatch fails the run), but a file left by an earlier sweep must not count.
        result = read_json(result_file) if status == 0 or fingerprint(result_file) != before else {}
        job.status = JobStatus.COMPLETED if status == 0 else JobStatus.FAILED
        job.return_value = result.get("objective")
        outcome = "completed" if status == 0 else f"failed ({describe_exit(status)})"
        self.table.finish(job.hydra_cfg.hydra.job.num, outcome, result)
        return status

    def _arguments(self, job: Job) -> list[str]:
        """Return the job's arguments: the sweep's flags and Hydra settings, the job's overrides, and its folder."""
        from selfdraft.app.command_line import quoted  # importing it takes seconds, and every command imports this file

        flags, _ = get_args_parser().parse_known_args(sys.argv[1:])
        given = {name: getattr(flags, name) for name in ("config_path", "config_name", "config_dir")}
        # Not resolved: `hydra.sweep.subdir=${hydra.job.num}` may be among them, which has no value outside a job.
        settings: Any = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        inherited = [setting for setting in settings if not setting.lstrip("+~").startswith(SWEEP_ONLY)]
        number = job.hydra_cfg.hydra.job.num
        return [
            *(f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None),
            *job.overrides,
            *inherited,
            "hydra.mode=RUN",  # a configuration file may set MULTIRUN
            f"hydra.job.num={number}",
            f"hydra.job.id={number}",
            f"hydra.run.dir={quoted(job.working_dir)}",
        ]


def entry_command() -> list[str]:
    """Return the command that started this process, without its arguments: a script, or a module run by `-m`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [sys.executable, "-m", spec.name] if spec else [sys.executable, str(Path(sys.argv[0]).absolute())]


def run_to_end(command: Sequence[str]) -> int:
    """Run `command` on this terminal and return its exit status; if we are interrupted, end it and all it started.

    It leads a session of its own. So one signal to the process group also reaches the ranks that it started, and Ctrl-C
    reaches only this process, which then ends the job: the job is never stopped twice.
    """
    sys.stdout.flush()  # the job writes to the same stream, and our lines belong before its lines
    job = subprocess.Popen(command, start_new_session=True)
    try:
        return job.wait()
    except BaseException:
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, stop)
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                job.wait(timeout=GRACE_S)
        raise


def describe_exit(status: int) -> str:
    """Return e.g. `exit 3`, or the name of the signal that ended the process, which is clearer than -9."""
    return f"exit {status}" if status >= 0 else signal.Signals(-status).name


def fingerprint(path: Path) -> int | None:
    """Return when `path` was last written in ns, or None if it does not exist."""
    return path.stat().st_mtime_ns if path.exists() else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the result of a job; {} if there is none (`task=generate` measures nothing) or it is incomplete."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}
