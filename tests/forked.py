"""Run `python run.py …` without the ten seconds that its imports take.

A server process makes the imports once, and then forks a new process for each command. That process has its own
session, folder, environment and open files, and ends as an interpreter does. What Python reads only at its start, such
as PYTHONIOENCODING, has no effect on it. Tests of that, of signals and of terminals start a real process by `command`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

IMPORTED = (
    "matplotlib.pyplot",
    "transformers.models.llama.modeling_llama",
    "selfdraft.app.help",
    "selfdraft.app.overrides",
    "selfdraft.app.run",
)


def run_forked(
    script: Path, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, …)`."""
    server = _server()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        order = {"argv": [str(script), *arguments], "cwd": str(cwd), "env": dict(env)}
        # The files have no names, so the server opens them through this process.
        order |= {"out": f"/proc/{os.getpid()}/fd/{out.fileno()}", "err": f"/proc/{os.getpid()}/fd/{err.fileno()}"}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        pid = json.loads(server.stdout.readline())
        if not select.select([server.stdout], [], [], timeout)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            server.stdout.readline()
            raise subprocess.TimeoutExpired(order["argv"], timeout)
        code = json.loads(server.stdout.readline())
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(order["argv"], code, out.read(), err.read())


@cache
def _server() -> subprocess.Popen[str]:
    """Start the server, once for each process of the test run; it ends with that process, which closes its input."""
    from command_line import environment

    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
    )
    atexit.register(server.stdin.close)
    return server


def serve() -> dict[str, Any] | None:
    """Fork for each order that comes in; returns the order in the forked process, and None when there are no more."""
    # Read by system calls: the forked process would inherit what a buffer holds.
    rest = b""
    while True:
        while b"\n" not in rest:
            if not (read := os.read(0, 1 << 16)):
                return None
            rest += read
        line, _, rest = rest.partition(b"\n")
        order, ready = json.loads(line), os.pipe()
        if (pid := os.fork()) == 0:
            os.close(ready[1])
            os.read(ready[0], 1)  # wait until the caller knows this process's number, by which it kills it
            os.close(ready[0])
            return order
        os.close(ready[0])
        os.write(1, b"%d\n" % pid)
        os.close(ready[1])
        _, status = os.waitpid(pid, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))


def become(order: Mapping[str, Any]) -> None:
    """Turn this forked process into `python` with the ordered command."""
    os.setsid()
    places = ((0, os.devnull, os.O_RDONLY), (1, order["out"], os.O_RDWR), (2, order["err"], os.O_RDWR))
    for number, path, flags in places:
        opened = os.open(path, flags | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = list(order["argv"])
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    for _name in IMPORTED:
        importlib.import_module(_name)
    if (_order := serve()) is not None:
        become(_order)
