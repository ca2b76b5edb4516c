"""Shared parts of tasks: the lock on a run's folder, a Lightning Trainer without greetings, and messages."""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from filelock import FileLock, Timeout
from rich.console import Console

from selfdraft.app.options.schemas import HardwareConfig
from selfdraft.app.runs.processes import OwnProcesses, OwnSignals, other_ranks
from selfdraft.core.errors import UserError
from selfdraft.core.paths import expanded
from selfdraft.drafters.base import DrafterConfig
from selfdraft.models.trained.adapter import FILE as WEIGHTS
from selfdraft.modules.resuming import STALE, Resumed
from selfdraft.tracking.files.run_folder import ANOTHER, LOCK, digest_of_file, refuse_foreign

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def quiet_trainer(hardware: HardwareConfig, folder: Path, *callbacks: pl.Callback) -> pl.Trainer:
    """Return a Trainer without checkpoints, loggers, samplers or greetings of its own."""
    quiet()
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy=hardware.strategy,
        use_distributed_sampler=False,  # it would repeat prompts to fill the last round: 11 would count as 12
        callbacks=[OwnSignals(), *callbacks],
        plugins=[OwnProcesses()],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def quiet() -> None:
    """Silence Lightning's greetings and its advice on workers and on Slurm's `srun`."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # jobs begin through submitit there


class owned:
    """Locks the run's folder for one run at a time: two runs would interleave their lines.

    Raises UserError, before anything is written, if the folder is not one of ours or belongs to another task.
    """

    def __init__(self, folder: Path, is_rank_zero: bool, task: str) -> None:
        self.folder, self.lock = folder, None
        if is_rank_zero:
            refuse_foreign(folder, task)
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(folder / LOCK, timeout=0)

    def __enter__(self) -> None:
        if self.lock is None:
            return
        try:
            self.lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.folder} is in use by another run: {ANOTHER}, or wait for that one to end; if you know that "
                f"none is at work there, remove {self.folder / LOCK} and repeat the command"
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            raise UserError(
                f"{self.folder} lies on a file system without locks, which keep two runs apart: {ANOTHER}"
            ) from None

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()


@contextmanager
def processes_of(trainer: pl.Trainer) -> Iterator[None]:
    """Start the trainer's other processes for a `with` block that calls the trainer.

    Raises:
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, which Lightning turns into exits of its own.
        SystemExit: another process failed.
    """
    with other_ranks(trainer):
        try:
            yield
        except SystemExit:
            raise KeyboardInterrupt from None


def tell_resumed(console: Console, folder: Path, count: int, resumed: Resumed) -> None:
    """Print how many of `count` prompts an interrupted run has finished, and how many turns no longer count."""
    if resumed.prompts:
        console.print(f"resuming {shown(folder)}: {resumed.prompts} of {count} prompts were finished before")
    if resumed.stale:
        console.print(
            f"{resumed.stale} turns in {shown(folder)} answer prompts that have changed or gone: they do not count, "
            f"and lie in *.{STALE}.jsonl now"
        )


def adapter_facts(drafter: DrafterConfig) -> dict[str, str]:
    """Return the digest of the adapter in a drafter's options, as a fact for `claim_run_dir`; {} without an adapter.

    Raises:
        UserError: its name begins with a home folder that does not exist.
    """
    for options in (drafter, getattr(drafter, "path", None)):
        if options is not None and (named := getattr(options, "adapter", None)) is not None:
            option = f"{options.config_group}.adapter"
            path = expanded(named, option)
            return {option: digest_of_file(path / WEIGHTS if path.is_dir() else path)}
    return {}


def shown(folder: Path) -> str:
    """Return the folder as messages show it: relative if it is below the working directory."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
