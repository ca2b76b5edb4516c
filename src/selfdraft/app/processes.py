"""The processes of one run: rank 0 is the process that the user started; it starts the others and watches them.

Ranks come from nowhere else. Variables such as RANK or SLURM_PROCID, which other launchers set and shells keep, are
ignored: a single run would take itself for one of several, and leave the work or the result to another.
"""

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

from selfdraft.app.command_line import quoted
from selfdraft.app.console import drop_unwritten
from selfdraft.app.launcher import entry_command
from selfdraft.app.signals import INTERRUPTED
from selfdraft.tracking.rank import process_rank, set_process_rank

MAIN = "SELFDRAFT_MAIN_PROCESS"  # process id of rank 0, in the environment of the ranks that it has started
RANK = "LOCAL_RANK"  # all processes are on this machine
REPORTED = ("RANK", RANK, "WORLD_SIZE")  # ignored with a message: whoever set these may expect an effect
IGNORED = (
    *REPORTED,
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "JSM_NAMESPACE_RANK",
)
LOOK_S = 0.2  # seconds between two checks of the other processes
SETTLE_S = 3.0  # seconds until every process has met a mistake that all of them meet, and rank 0 has printed it
STOP_S = 15.0  # seconds until all processes have ended after a signal that stops them
END_S = 60.0  # seconds until a process that lost its connections has ended, even on a busy machine
STOPS = (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)


def settle_rank() -> None:
    """Find out this process's rank in its run, and remove the variables that other launchers set for it.

    Raises:
        SystemExit: the run that started this process has ended.
    """
    rank = 0
    if MAIN in os.environ:
        if os.environ[MAIN] != str(os.getppid()):
            sys.exit(f"selfdraft: the run that started this process has ended; if you did not mean one, unset {MAIN}")
        rank = int(os.environ[RANK])
    else:
        found = [name for name in IGNORED if os.environ.pop(name, None) is not None]
        if ignored := [name for name in found if name in REPORTED]:
            print(
                f"selfdraft: {', '.join(ignored)} in the environment ignored: a run starts its processes itself "
                "(hardware=cpu_ddp or gpu_ddp, hardware.devices)",
                file=sys.stderr,
            )
    set_process_rank(rank)


def tell_mistake(line: str) -> None:
    """Print the message of a mistake that ends this process, unless rank 0 prints the same one.

    Every process of a run reads the same configuration, so rank 0 prints a mistake for all and then ends the others,
    which wait for that. A process prints only a mistake that rank 0 does not meet.
    """
    drop_unwritten()  # this also flushes earlier output, which belongs before the line
    if rank := process_rank():
        time.sleep(SETTLE_S)
        line = f"process {rank}: {line}"
    print(f"selfdraft: {line}", file=sys.stderr, flush=True)


class OwnProcesses(LightningEnvironment):
    """Tells Lightning that we start the processes, whatever the environment variables are."""

    @property
    def creates_processes_externally(self) -> bool:
        """True, so that Lightning starts none."""
        return True


@contextlib.contextmanager
def other_ranks(trainer: pl.Trainer) -> Iterator[None]:
    """Run the same command in the trainer's other processes, if it has any, while the `with` block runs.

    If one of them fails, this process ends too, because it would wait for that one for ever. If this process fails, it
    ends the others.

    Raises:
        SystemExit: another process failed (status 2, 130 or 1); raised instead of the error that it caused here.
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
    try:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
        os.environ |= {RANK: "0", "WORLD_SIZE": str(trainer.world_size)}
        for rank in range(1, trainer.world_size):
            others.append(_start(rank))  # one by one: if a start fails, those already started are ended below
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
            sys.exit(_told(*failed))
        raise
    finally:
        over.set()
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


def _start(rank: int) -> subprocess.Popen[bytes]:
    """Start this process's command as `rank`, in the same folder."""
    folder = HydraConfig.get().runtime.output_dir
    command = [*entry_command(), *sys.argv[1:], f"hydra.run.dir={quoted(folder)}"]
    return subprocess.Popen(command, env={**os.environ, RANK: str(rank), MAIN: str(os.getpid())})


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
    if status in STOPS:
        return INTERRUPTED
    how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
    print(
        f"selfdraft: process {rank} has failed ({how}); what is finished is kept, and the same command with this run's "
        "hydra.run.dir goes on",
        file=sys.stderr,
        flush=True,
    )
    return 1
