"""Command lines, at a second each: every one runs in a fork of a process that has imported everything.

A command has its own standard output and error, ends as a process of its own would, and is killed when it takes longer
than its limit.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

from selfdraft.core.messages import printable

TESTS = Path(__file__).parents[1]
RUN = TESTS.parent / "run.py"
LIMIT_S = 60.0
POLL_S = 0.02


class Ended(NamedTuple):
    """How a command ended; `status` is None where it was killed after its limit, and negative for a signal."""

    status: int | None
    out: str
    err: str

    def refuse_anything_but_success_or_a_line(self) -> None:
        """Assert that it ended with 0, or with 2 and one line, and that a terminal shows whatever it printed."""
        assert self.status in (0, 2), f"status {self.status}\n{self.err[-3000:]}"
        assert "Traceback" not in self.out + self.err, self.err[-3000:]
        if self.status == 2:
            (line,) = self.err.splitlines()
            assert line.startswith("selfdraft: "), line
        for text in (self.out, self.err):
            assert printable(text) == text, repr(text[-3000:])


class Commands:
    """`with Commands() as commands: commands.run(["experiment=smoke"], cwd=folder)`."""

    def __enter__(self) -> Self:
        from command_line import environment

        self.server = subprocess.Popen(
            [sys.executable, __file__], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.stdin.close()
        self.server.wait(LIMIT_S)
        self.server.stdout.close()

    def run(self, arguments: Sequence[str], cwd: Path, limit_s: float = LIMIT_S) -> Ended:
        """`python run.py <arguments>` in `cwd`."""
        with tempfile.TemporaryDirectory() as folder:
            request = {"arguments": list(arguments), "cwd": str(cwd), "limit_s": limit_s, "folder": folder}
            self.server.stdin.write(json.dumps(request).encode() + b"\n")
            self.server.stdin.flush()
            status = json.loads(self.server.stdout.readline())
            out, err = (Path(folder, name).read_bytes().decode(errors="backslashreplace") for name in ("out", "err"))
            return Ended(status, out, err)


def serve() -> dict | None:
    """Fork for each request that comes in and answer with the exit status. In a fork, return its request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.chdir(request["cwd"])
            answers.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(Path(request["folder"], name), os.O_WRONLY | os.O_CREAT), number)
            return request
        print(json.dumps(_status_of(pid, request["limit_s"])), file=answers, flush=True)
    return None


def _status_of(pid: int, limit_s: float) -> int | None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_S)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def end_as_a_process_would(arguments: list[str]) -> None:
    """Run the command, print its traceback if it has one, and leave: taking down modules would take seconds."""
    sys.argv = arguments
    status: object = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    import torch

    torch.set_num_threads(1)
    import datasets  # noqa: F401
    import peft  # noqa: F401

    import selfdraft.app.run  # noqa: F401

    gc.collect()
    gc.freeze()  # forks would copy every page of which they count a reference
    if (request := serve()) is not None:
        end_as_a_process_would([str(RUN), *request["arguments"]])
