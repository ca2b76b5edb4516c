"""The processes of a sweep's jobs: how one is started, what it prints, where it runs, and how it is ended.

A job is `python run.py <arguments>`. On Linux it is a fork of the sweep's process, which makes all imports once: they
take longer than a small job. Each job still has a process of its own, so its memory is given back at its end, and a
crash ends only that job.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from selfdraft.app.terminal.command_line import entry_command

GRACE_S = 15.0  # seconds for a job to close its files and its W&B run before it gets a harsher signal
TAIL = 8192  # bytes of a job's last error output that are kept, to find out why it failed
_PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class Place:
    """Where a job runs, so that jobs at the same time do not wait for each other's cores.

    Attributes:
        cores: the cores that it may use; empty for all.
        environment: variables that it gets, such as the GPUs that it sees.
    """

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class JobProcess:
    """A job's process, which leads a session of its own.

    So one signal to its group also reaches the ranks that it started, and Ctrl-C reaches only the sweep, which then
    ends the job: the job is never stopped twice.

    Attributes:
        begun, started: when it was started, by the clock that only goes forward, and in seconds since the epoch.
        tail: the last bytes of its error output.
    """

    pid: int
    errors: int
    copy: IO[bytes] | None
    tail: bytes = b""
    status: int | None = None
    begun: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.time)

    def poll(self) -> int | None:
        """Pass on its error output, and return its exit status once it has ended; a signal counts as negative."""
        self._read()
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self._read()
                os.close(self.errors)
        return self.status

    def end(self) -> None:
        """End it and all that it started, first by asking."""
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, stop)
            until = time.monotonic() + GRACE_S
            with contextlib.suppress(KeyboardInterrupt):
                while self.poll() is None and time.monotonic() < until:
                    time.sleep(0.02)

    def last_line(self) -> str:
        """Return the line of its error output that says why it failed; empty if it printed none."""
        lines = [line.strip() for line in self.tail.decode("utf-8", "replace").splitlines() if line.strip()]
        ours = [line.removeprefix("selfdraft: ") for line in lines if line.startswith("selfdraft: ")]
        return (ours or lines or [""])[-1]

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while read := os.read(self.errors, 1 << 16):
                self.tail = (self.tail + read)[-TAIL:]
                if self.copy is not None:
                    self.copy.write(read)
                    self.copy.flush()


def start_job(
    command: Sequence[str],
    arguments: Sequence[str],
    place: Place,
    output: Path | None,
    work: Callable[[], object] | None = None,
) -> JobProcess:
    """Start a job.

    Args:
        command: runs a job; empty for the command that runs this process.
        arguments: of the job.
        output: file to which the job's output is appended; None to pass it on to this process's own.
        work: what a fork of this process has to do to be the job; None to start a new process.
    """
    sys.stdout.flush()  # the job writes to the same stream, and our lines belong before its lines
    sys.stderr.flush()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    file = None if output is None else output.open("ab")
    try:
        if work is not None:
            pid = os.fork()
            if pid == 0:
                _run_forked(work, arguments, place, writer, None if file is None else file.fileno())
        else:
            started = subprocess.Popen(
                [*(command or entry_command()), *arguments],
                start_new_session=True,
                stdout=file,
                stderr=writer,
                env={**os.environ, **place.environment},
            )
            pid, started.returncode = started.pid, 0  # this module waits for it, and Popen need not
            if place.cores and hasattr(os, "sched_setaffinity"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(pid, place.cores)
    finally:
        os.close(writer)
    # Errors go where the output goes. Ours is unwrapped to bytes, which hold no escape sequences of ours.
    return JobProcess(pid, reader, file if file is not None else getattr(sys.stderr, "buffer", None))


def can_fork() -> bool:
    """Return whether a fork of this process can work: on Linux, and before CUDA, which no fork can use, has begun."""
    torch = sys.modules.get("torch")
    return sys.platform == "linux" and (torch is None or not torch.cuda.is_initialized())


def _run_forked(
    work: Callable[[], object], arguments: Sequence[str], place: Place, errors: int, output: int | None
) -> None:
    """Be the job, in the forked process, and end the process as an interpreter does."""
    status = 1
    try:
        os.setsid()
        # If the sweep is killed, so is the job: a resumed sweep would find its folder in use.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(errors, 2)
        if output is not None:
            os.dup2(output, 1)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ |= place.environment
        if place.cores:
            os.sched_setaffinity(0, place.cores)
        sys.argv[1:] = arguments
        status = _status_of(work)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _status_of(work: Callable[[], object]) -> int:
    """Do the work of a process, and return its exit status."""
    try:
        work()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def places(count: int, gpus: Sequence[str]) -> list[Place]:
    """Return where each of `count` jobs at the same time runs: an equal share of the cores, and of the GPUs.

    Args:
        gpus: the GPUs that jobs may use; if there are fewer than jobs, several jobs share one.
    """
    if count == 1:
        return [Place()]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    found = []
    for index in range(count):
        mine = cores[index * len(cores) // count : (index + 1) * len(cores) // count]
        if cores and not mine:  # more jobs than cores
            mine = [cores[index % len(cores)]]
        shared = gpus[index::count] or ([gpus[index % len(gpus)]] if gpus else [])
        found.append(Place(tuple(mine), {"CUDA_VISIBLE_DEVICES": ",".join(shared)} if shared else {}))
    return found
