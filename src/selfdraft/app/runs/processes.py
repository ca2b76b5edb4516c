"""The processes of one run: rank 0 is the process that the user started; it starts the others and watches them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from lightning_fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port

from selfdraft.app.terminal.command_line import entry_command, quoted
from selfdraft.app.terminal.ranks import MAIN, OWN_CORES, RANK, SETTLE_S
from selfdraft.app.terminal.signals import INTERRUPTED
from selfdraft.tracking.files.rank import process_rank

LOOK_S = 0.2  # seconds between two checks of the other processes
STOP_S = 15.0  # seconds until all processes have ended after a signal that stops them
END_S = 60.0  # seconds until a process that lost its connections has ended, even on a busy machine
STOPS = (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)


class OwnProcesses(LightningEnvironment):
    """Tells Lightning that we start the processes, whatever the environment variables are."""

    @property
    def creates_processes_externally(self) -> bool:
        """True, so that Lightning starts none."""
        return True


class OwnSignals(pl.Callback):
    """Makes SIGTERM stop a training or an evaluation at once, as Ctrl-C does (see `signals.interrupted_by`).

    Lightning's own handler tells the other processes by a collective operation. A process that is in another collective
    operation when the signal comes, or that gets the signal twice, then waits for ever.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the handler that the run has set, before Lightning sets its own."""
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the run's handler back, in place of Lightning's."""
        self.on_test_start(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the run's handler back, in place of Lightning's."""
        if self.handler is not None:  # None: one that was not set from Python
            signal.signal(signal.SIGTERM, self.handler)


@contextlib.contextmanager
def other_ranks(trainer: pl.Trainer) -> Iterator[None]:
    """Run the same command in the trainer's other processes, if it has any, while the `with` block runs.

    On a CPU every process runs on cores of its own: two that are moved between cores slow each other down.

    If one of them fails, this process ends too, because it would wait for that one for ever. If this process fails, it
    ends the others.

    Raises:
        SystemExit: another process failed (status 2 or 1); raised instead of the error that it caused here.
        KeyboardInterrupt: a signal stopped another process; raised for the same reason.
    """
    if trainer.world_size == 1:
        yield
        return
    if process_rank():
        with _quiet_about_others():
            yield
        return
    others: list[subprocess.Popen[bytes]] = []
    over = threading.Event()
    shares = _cores(trainer)
    before = os.sched_getaffinity(0) if shares else set()
    try:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
        os.environ |= {RANK: "0", "WORLD_SIZE": str(trainer.world_size)}
        for rank in range(1, trainer.world_size):
            # One by one: if a start fails, those already started are ended below.
            others.append(_start(rank, shares[rank] if shares else set()))
        if shares:
            os.sched_setaffinity(0, shares[0])
        launcher = trainer.strategy.launcher
        if launcher is not None and hasattr(launcher, "procs"):
            launcher.procs = others  # Lightning forwards to them the signals that stop this process
        threading.Thread(target=_watch, args=(others, over), daemon=True).start()
        yield
        for other in others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.wait(STOP_S)
    except Exception as error:
        if _is_of_another(error) and (failed := _failed(others, time.monotonic() + END_S)):
            over.set()
            if failed[1] in STOPS:  # a signal to all of them reached that one first
                raise KeyboardInterrupt from None
            sys.exit(_told(*failed))
        raise
    finally:
        over.set()
        if shares:
            os.sched_setaffinity(0, before)
        for other in others:
            other.kill()
            other.wait()
        for name in (RANK, "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)


def _is_of_another(error: Exception) -> bool:
    """Return whether an error only says that the connection to another process is lost."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection", "NCCL"))
    )


@contextlib.contextmanager
def _quiet_about_others() -> Iterator[None]:
    """Hold back an error that another process caused: that process prints the reason, and rank 0 ends this one."""
    try:
        yield
    except Exception as error:
        until = time.monotonic() + 2 * END_S
        while _is_of_another(error) and time.monotonic() < until:
            if os.environ[MAIN] != str(os.getppid()):
                sys.exit(1)
            time.sleep(LOOK_S)
        raise


def _cores(trainer: pl.Trainer) -> list[set[int]]:
    """Return the cores of every rank, as many for each; [] where they cannot be dealt, or other devices compute."""
    if trainer.strategy.root_device.type != "cpu" or not hasattr(os, "sched_setaffinity"):
        return []
    cores, ranks = sorted(os.sched_getaffinity(0)), trainer.world_size
    each = len(cores) // ranks
    return [set(cores[rank * each : (rank + 1) * each]) for rank in range(ranks)] if each else []


def _start(rank: int, cores: set[int]) -> subprocess.Popen[bytes]:
    """Start this process's command as `rank`, in the same folder and on these cores, if any are given."""
    folder = HydraConfig.get().runtime.output_dir
    command = [*entry_command(), *sys.argv[1:], f"hydra.run.dir={quoted(folder)}"]
    own = {OWN_CORES: "1"} if cores else {}
    process = subprocess.Popen(command, env={**os.environ, **own, RANK: str(rank), MAIN: str(os.getpid())})
    if cores:
        os.sched_setaffinity(process.pid, cores)
    return process


def _failed(others: list[subprocess.Popen[bytes]], until: float) -> tuple[int, int] | None:
    """Return rank and exit status of a process that failed; None if none fails before the time `until`."""
    while True:
        for rank, other in enumerate(others, start=1):
            if other.poll():
                return rank, other.returncode
        if time.monotonic() > until:
            return None
        time.sleep(LOOK_S)


def _watch(others: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """End this process after another one failed, if it does not end by itself in time.

    It may hang in a collective operation, which no signal interrupts.
    """
    while not over.wait(LOOK_S):
        if failed := _failed(others, 0.0):
            if not over.wait(STOP_S if failed[1] in STOPS else 2 * SETTLE_S):
                status = _told(*failed)
                for other in others:
                    other.kill()
                sys.stdout.flush()
                os._exit(status)
            return


def _told(rank: int, status: int) -> int:
    """Print how another process ended, unless it has printed that itself, and return the exit status for this one."""
    if status == 2:
        return status
    how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
    ended = "stopped" if status in STOPS else f"process {rank} has failed ({how})"
    print(
        f"selfdraft: {ended}; what is finished is kept, and the same command with this run's hydra.run.dir goes on",
        file=sys.stderr,
        flush=True,
    )
    return INTERRUPTED if status in STOPS else 1
