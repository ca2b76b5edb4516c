"""A Hydra launcher that runs every job of a multirun as a process of its own.

Hydra's own launcher runs the jobs of `python run.py -m …` inside one process. Under DDP, Lightning starts its ranks by
running *the same command line again*, so there every rank would start the whole sweep. Here a job is an ordinary
`python run.py <its overrides> hydra.run.dir=<its folder>`: DDP sees a single run, memory is returned between jobs, and
one that crashes takes only itself along. What the job measured comes back through `result.json` in its folder.

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
from selfdraft.app.sweep_table import SweepTable
from selfdraft.tracking.run_folder import Mark, refuse_foreign

log = logging.getLogger(__name__)

# Settings of the sweep as a whole: a job that inherited them would be a sweep again, or write to another folder.
SWEEP_ONLY = ("hydra.mode", "hydra.run.", "hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher")
SWEEP = "sweep"  # in the mark of its folder, where a run has its task
GRACE_S = 15.0  # how long a job may take to close its files and its W&B run before it is asked less kindly


class JobFailed(CompactHydraException):
    """Tells the sweeper how a job ended. Being "compact", it is printed by Hydra as a line instead of a traceback."""


class ProcessLauncher(Launcher):
    """Runs jobs one after another, each in its own process, and keeps the sweep's table up to date."""

    def __init__(self, command: Sequence[str] = (), keep_going: bool = True) -> None:
        self.command = list(command) or entry_command()
        self.keep_going = keep_going

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over, and take the sweep's folder, before Hydra writes there.

        The task function stays unused: the job's own process finds it itself.

        Raises:
            UserError: the folder holds files that no sweep has written.
        """
        self.context, self.config = hydra_context, config
        self.table = SweepTable(Path(config.hydra.sweep.dir).absolute())
        refuse_foreign(self.table.folder, SWEEP, "hydra.sweep.dir")
        Mark(SWEEP).write(self.table.folder)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs. A sweeper that works in several batches (Optuna) gets one growing table."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        self.table.folder.mkdir(parents=True, exist_ok=True)
        jobs = [self._compose(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        for job in jobs:
            self.table.add(job.hydra_cfg.hydra.job.num, job.overrides, job.working_dir)

        failed: list[str] = []
        # A scheduler's SIGTERM and a closed terminal's SIGHUP too, so that no job is orphaned.
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
        for job in jobs:
            if job.status == JobStatus.FAILED:  # every one tells of all: Hydra prints the first one, as its last line
                job.return_value = JobFailed(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}")
        return [job for job in jobs if job.status != JobStatus.UNKNOWN]

    def _compose(self, number: int, overrides: Sequence[str]) -> JobReturn:
        """The job's configuration and folder, composed just as Hydra's own launcher does."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        outer = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)  # `sweep.subdir` may ask for ${hydra:job.num}
            folder = self.table.folder / str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = outer
        with read_write(config.hydra.runtime), open_dict(config):
            config.hydra.runtime.output_dir = str(folder)
            task_config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        return JobReturn(
            overrides=list(overrides),
            cfg=task_config,
            hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
            working_dir=str(folder),
            task_name=config.hydra.job.name,
        )

    def _run(self, job: JobReturn) -> int:
        """Run one job to its end, enter its result into the table and into `job`, and return its exit status."""
        result_file = Path(job.working_dir) / "result.json"
        before = fingerprint(result_file)
        status = run_to_end([*self.command, *self._arguments(job)])
        # A job that failed may still have a result (a mismatch fails the run), but not one left by an earlier sweep.
        result = read_json(result_file) if status == 0 or fingerprint(result_file) != before else {}
        job.status = JobStatus.COMPLETED if status == 0 else JobStatus.FAILED
        job.return_value = result.get("objective")
        outcome = "completed" if status == 0 else f"failed ({describe_exit(status)})"
        self.table.finish(job.hydra_cfg.hydra.job.num, outcome, result)
        return status

    def _arguments(self, job: JobReturn) -> list[str]:
        """The job's command line: the sweep's flags and Hydra settings, the job's overrides, and its folder."""
        from selfdraft.app.command_line import quoted  # it takes seconds, and every command imports the launcher

        flags, _ = get_args_parser().parse_known_args(sys.argv[1:])
        given = {name: getattr(flags, name) for name in ("config_path", "config_name", "config_dir")}
        # Unresolved: `hydra.sweep.subdir=${hydra.job.num}` may be among them, and has no value outside a job.
        settings = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        inherited = [setting for setting in settings if not setting.lstrip("+~").startswith(SWEEP_ONLY)]
        number = job.hydra_cfg.hydra.job.num
        return [
            *(f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None),
            *job.overrides,
            *inherited,
            "hydra.mode=RUN",  # a configuration may ask for MULTIRUN on its own
            f"hydra.job.num={number}",
            f"hydra.job.id={number}",
            f"hydra.run.dir={quoted(job.working_dir)}",
        ]


def entry_command() -> list[str]:
    """The command that started this process, without its arguments: a script, or a module run by `-m`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [sys.executable, "-m", spec.name] if spec else [sys.executable, str(Path(sys.argv[0]).absolute())]


def run_to_end(command: Sequence[str]) -> int:
    """Run `command` on this terminal and return its exit status; whatever interrupts us ends it, and all it started.

    It leads a session of its own, so that one signal reaches the ranks that DDP started beside it as well, and so that
    Ctrl-C comes to us alone: the job is then ended once, by us, whoever sent the signal to whom.
    """
    sys.stdout.flush()  # the job writes to the same place, and what we said belongs before it
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
    """`exit 3`, or the name of the signal that ended the process (-9 says little to most people)."""
    return f"exit {status}" if status >= 0 else signal.Signals(-status).name


def fingerprint(path: Path) -> int | None:
    """When `path` was last written, or None where it does not exist."""
    return path.stat().st_mtime_ns if path.exists() else None


def read_json(path: Path) -> dict[str, Any]:
    """The result a job left, or nothing where it left none (`task=generate` measures nothing), or half a one."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}
