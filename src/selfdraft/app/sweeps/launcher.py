"""A Hydra launcher that runs every job of a multirun in its own process, several at once if that is asked for.

Hydra's own launcher runs the jobs of `python run.py -m …` inside one process. Under DDP, Lightning starts its ranks by
running *the same command line again*, so there every rank would start the whole sweep. Here a job is an ordinary
`python run.py <its overrides> hydra.run.dir=<its folder>` (see jobs.py): DDP sees a single run, memory is freed between
jobs, and a job that crashes does not affect the others. Its results are read from `result.json` in its folder.

A sweep in the folder of an earlier one goes on with it: jobs that have finished are not started again.

`override hydra/launcher: process` selects it; src/hydra_plugins/selfdraft.py makes that name known to Hydra.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from selfdraft.app.sweeps.forked_job import Forks
from selfdraft.app.sweeps.jobs import JobProcess, Place, can_fork, places, start_job
from selfdraft.app.sweeps.pruning import Pruner
from selfdraft.app.sweeps.sweep_index import PRUNED, SweepIndex, folder_name, identity_of, varying_keys
from selfdraft.app.sweeps.sweep_report import report_of_sweep
from selfdraft.app.sweeps.sweep_table import SweepTable
from selfdraft.app.terminal.command_line import quoted
from selfdraft.app.terminal.errors import JobFailed
from selfdraft.app.terminal.signals import INTERRUPTED, interrupted_by
from selfdraft.tracking.files.run_folder import Mark, refuse_foreign
from selfdraft.tracking.files.run_status import RunStatus

log = logging.getLogger(__name__)

# Settings of the whole sweep: a job that inherited them would start a sweep again, or write to another folder.
SWEEP_ONLY = ("hydra.mode", "hydra.run.", "hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher")
SWEEP = "sweep"  # the task in the mark of a sweep's folder
BY_NUMBER = "${hydra.job.num}"  # Hydra's default for hydra.sweep.subdir, which is a name by what differs here
OUTPUT = "output.log"  # in a job's folder: what it printed, if several jobs run at once
LOOK_S = 0.05  # seconds between two looks at the running jobs


class Job(JobReturn):
    """A job whose configuration is composed, so that these parts of it are known."""

    composed: DictConfig  # all of it
    overrides: Sequence[str]
    hydra_cfg: DictConfig
    working_dir: str
    name: str  # of its folder, in the sweep's

    @property
    def number(self) -> int:
        """The job's number in this sweep."""
        return int(self.hydra_cfg.hydra.job.num)


class ProcessLauncher(Launcher):
    """Runs jobs in their own processes, and keeps the sweep's table and index up to date."""

    def __init__(
        self,
        command: Sequence[str] = (),
        keep_going: bool = True,
        n_jobs: int = 1,
        pin: bool = True,
        prune_after: int = 0,
    ) -> None:
        """Prepare a launcher.

        Args:
            command: runs a job; empty for the command that runs the sweep.
            keep_going: after a failed job, go on with the others.
            n_jobs: jobs that run at the same time.
            pin: with several at once, give each its own share of the cores.
            prune_after: prompts after which a job is ended if it cannot become the best; 0 to end none.
        """
        self.command, self.keep_going = list(command), keep_going
        self.n_jobs, self.pin = max(1, n_jobs), pin
        self.pruner = Pruner(prune_after)
        self.shows = True  # the table after every batch; a sweeper with many batches prints it at the end

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's context and configuration, and mark the sweep's folder before Hydra writes there.

        Raises:
            UserError: the folder holds files that no sweep has written.
        """
        self.context, self.config = hydra_context, config
        self.forks = Forks(hydra_context.config_loader, task_function)
        folder = Path(config.hydra.sweep.dir).absolute()
        refuse_foreign(folder, SWEEP, "hydra.sweep.dir")
        Mark(SWEEP).write(folder)
        self.table, self.index = SweepTable(folder), SweepIndex(folder)
        for name in self.index.jobs if self.pruner.after else ():
            if self.index.is_finished(name):
                self.pruner.finished(read_json(folder / name / "result.json"))
        self.taken: list[float] = []  # seconds of the jobs that this sweep has run

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs. If a sweeper works in several batches (Optuna), all of them go into one table."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [self._compose(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        for job in jobs:
            self.table.add(job.number, job.overrides, job.working_dir)
        finished = [job for job in jobs if self.index.is_finished(job.name)]
        for job in finished:
            known = self.index.jobs[job.name]
            if known.status == PRUNED:
                self._prune(job, known.reason, known.seconds)
            else:
                self._conclude(job, 0, known.seconds, known=True)
        if finished:
            log.info(f"{len(finished)} of {len(jobs)} jobs had finished before: {', '.join(j.name for j in finished)}")
        todo = [job for job in jobs if job not in finished]
        # SIGTERM (a scheduler) and SIGHUP (a closed terminal) interrupt as well, so that no job is orphaned.
        with interrupted_by(signal.SIGTERM, signal.SIGHUP):
            self._run_all(todo, len(jobs))
        if self.shows:
            self.show()
        failed = [job for job in jobs if job.status == JobStatus.FAILED]
        said = ", ".join(f"{job.number} {self.index.jobs[job.name].status.removeprefix('failed ')}" for job in failed)
        for job in failed:  # each lists all failures: Hydra prints only the first exception
            job.return_value = JobFailed(f"{len(failed)} of {len(jobs)} jobs failed: {said}")
        return [job for job in jobs if job.status != JobStatus.UNKNOWN]

    def show(self) -> None:
        """Print the table, and write the page about all jobs."""
        self.table.show()
        report_of_sweep(self.table.folder)

    def _run_all(self, todo: Sequence[Job], count: int) -> None:
        """Run jobs, `n_jobs` at once, until all have ended.

        Raises:
            SystemExit: it was interrupted. Running jobs are ended, and what had finished is kept.
        """
        waiting, running = list(todo), dict[int, tuple[Job, JobProcess]]()
        free = places(self.n_jobs, self._gpus())
        free = free if self.pin else [Place(environment=place.environment) for place in free]
        slots, stopped = dict(enumerate(free)), False
        try:
            while waiting or running:
                for slot in [slot for slot in slots if slot not in running]:
                    if waiting and not stopped:
                        job = waiting.pop(0)
                        log.info(f"Job {job.number} ({count - len(waiting)} of {count}): {shlex.join(job.overrides)}")
                        running[slot] = job, self._start(job, slots[slot], waiting[0] if waiting else None)
                time.sleep(LOOK_S)
                for slot, (job, process) in list(running.items()):
                    if (status := process.poll()) is None:
                        if reason := self.pruner.verdict(Path(job.working_dir)):
                            process.end()
                            self._prune(job, reason, time.monotonic() - process.begun)
                            del running[slot]
                        continue
                    del running[slot]
                    seconds = time.monotonic() - process.begun
                    self._conclude(job, status, seconds, said=process.last_line(), since=process.started)
                    self.taken.append(seconds)
                    stopped = stopped or (status != 0 and not self.keep_going)
                    if waiting and not stopped:
                        left = sum(self.taken) / len(self.taken) * (len(waiting) + len(running)) / self.n_jobs
                        log.info(f"{len(waiting) + len(running)} jobs are left, about {left:.0f} s")
                if stopped and not running:
                    return
        except KeyboardInterrupt:
            for _, process in running.values():
                process.end()
            for job, _ in running.values():
                self._note(job, "interrupted")
            self.table.show()
            numbers = ", ".join(str(job.number) for job, _ in running.values())
            log.error(f"Stopped during job {numbers}; jobs that had finished keep their results")
            sys.exit(INTERRUPTED)

    def _gpus(self) -> list[str]:
        """Return the GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them; empty if the jobs use none."""
        if self.n_jobs == 1 or OmegaConf.select(self.config, "hardware.accelerator", default="cpu") != "gpu":
            return []
        if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
            return named.split(",")
        import torch

        return [str(index) for index in range(torch.cuda.device_count())]

    def _compose(self, number: int, overrides: Sequence[str]) -> Job:
        """Return the job with its configuration and folder, composed as Hydra's own launcher does."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        task_config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        name = self._name(config, task_config, overrides)
        with read_write(config.hydra.runtime), open_dict(config):
            config.hydra.runtime.output_dir = str(self.table.folder / name)
        job = Job(
            overrides=list(overrides),
            cfg=task_config,
            hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
            working_dir=str(self.table.folder / name),
            task_name=config.hydra.job.name,
        )
        job.name, job.composed = name, config
        return job

    def _name(self, config: DictConfig, task_config: DictConfig, overrides: Sequence[str]) -> str:
        """Return the name of a job's folder: by what differs, unless the user wants other names."""
        plain: Any = OmegaConf.to_container(task_config, resolve=False)
        settings: Any = OmegaConf.to_container(self.config.hydra, resolve=False)
        if settings["sweep"]["subdir"] == BY_NUMBER:
            swept = varying_keys(settings["overrides"]["task"], list((settings["sweeper"] or {}).get("params") or {}))
            return self.index.place(identity_of(plain), overrides, folder_name(overrides, swept))
        outer = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)  # `sweep.subdir` may contain ${hydra:job.num}
            wanted = str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = outer
        return self.index.claim(identity_of(plain), overrides, wanted)

    def _start(self, job: Job, place: Place, following: Job | None) -> JobProcess:
        """Start a job. If several run at once, each writes to a file, because their lines would be mixed."""
        output = None
        if self.n_jobs > 1:
            folder = Path(job.working_dir)
            folder.mkdir(parents=True, exist_ok=True)
            output = folder / OUTPUT
        work = None
        if not self.command and can_fork():
            work = self.forks.work_of(job.composed, job.working_dir, None if following is None else following.composed)
        return start_job(self.command, self._arguments(job), place, output, work)

    def _conclude(
        self, job: Job, status: int, seconds: float, *, said: str = "", since: float = 0.0, known: bool = False
    ) -> None:
        """Put the result of a job that has ended into the table, the index and `job`.

        Args:
            status: its exit status.
            said: its last line of error output.
            since: when it was started, in seconds since the epoch. Files of an earlier job must not count.
            known: whether it had finished before this sweep.
        """
        folder = Path(job.working_dir)
        # A failed job may have a result (a mismatch fails the run).
        result = read_json(folder / "result.json") if status == 0 or is_newer(folder / "result.json", since) else {}
        job.status = JobStatus.COMPLETED if status == 0 else JobStatus.FAILED
        if status == 0:
            self.pruner.finished(result)
        job.return_value = result.get("objective")
        outcome, reason = "completed", ""
        if status != 0:
            ended = RunStatus.read(folder) if is_newer(folder / "status.json", since) else None
            reason = (ended.reason if ended else "") or said
            outcome = f"failed ({describe_exit(status)})"
            log.error(f"Job {job.number} {outcome}: {reason}")
        self._note(job, outcome, result, reason, seconds, save=not known)

    def _prune(self, job: Job, reason: str, seconds: float) -> None:
        """Enter a job that was ended because it could not become the best."""
        job.status = JobStatus.COMPLETED  # it is no failure
        log.info(f"Job {job.number} {PRUNED}: {reason}")
        self._note(job, PRUNED, reason=reason, seconds=seconds)

    def _note(
        self,
        job: Job,
        outcome: str,
        result: dict[str, Any] | None = None,
        reason: str = "",
        seconds: float = 0.0,
        *,
        save: bool = True,
    ) -> None:
        self.table.finish(job.number, outcome, result, reason, seconds)
        if save:
            self.index.finish(job.name, outcome, reason, seconds)

    def _arguments(self, job: Job) -> list[str]:
        """Return the job's arguments: the sweep's flags and Hydra settings, the job's overrides, and its folder."""
        flags, _ = get_args_parser().parse_known_args(sys.argv[1:])
        given = {name: getattr(flags, name) for name in ("config_path", "config_name", "config_dir")}
        # Not resolved: `hydra.sweep.subdir=${hydra.job.num}` may be among them, which has no value outside a job.
        settings: Any = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        inherited = [setting for setting in settings if not setting.lstrip("+~").startswith(SWEEP_ONLY)]
        return [
            *(f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None),
            *job.overrides,
            *inherited,
            "hydra.mode=RUN",  # a configuration file may set MULTIRUN
            f"hydra.job.num={job.number}",
            f"hydra.job.id={job.number}",
            f"hydra.run.dir={quoted(job.working_dir)}",
        ]


def describe_exit(status: int) -> str:
    """Return e.g. `exit 3`, or the name of the signal that ended the process, which is clearer than -9."""
    return f"exit {status}" if status >= 0 else signal.Signals(-status).name


def is_newer(path: Path, since: float) -> bool:
    """Return whether a file exists and was written after a time in seconds since the epoch."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime >= since
    return False


def read_json(path: Path) -> dict[str, Any]:
    """Return the result of a job; {} if there is none (`task=generate` measures nothing) or it is incomplete."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}
