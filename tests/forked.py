"""Run `python run.py …` without the ten seconds that its imports take.

A server process makes the imports once, and then forks a new process for each command. That process has its own
session, folder, environment and open files, and ends as an interpreter does. The processes that it starts itself, ranks
and jobs, are forked as well. What Python reads only at its start, such as PYTHONIOENCODING, has no effect on them. For
that, and for one of each other kind, tests start real processes by `command`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

IMPORTED = (
    "datasets",
    "matplotlib.pyplot",
    "pandas",
    "transformers.models.llama.modeling_llama",
    "selfdraft.app.help",
    "selfdraft.app.overrides",
    "selfdraft.app.run",
)


class Forked:
    """A process of `python run.py …`, much as `subprocess.Popen` has it with two pipes of text."""

    def __init__(
        self, script: Path, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], spares: bool = True
    ) -> None:
        """With `spares`, the processes that it starts are forked as well."""
        self.args = [str(script), *arguments]
        self.files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  (`communicate` closes them)
        # The files have no names, so the server opens them through this process.
        out, err = (f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self.files)
        order = {"argv": self.args, "cwd": str(cwd), "env": dict(env), "out": out, "err": err, "spares": spares}
        self.pid = _ask(order)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, once it has ended."""
        if self.returncode is None:
            self.returncode = _ask({"ended": self.pid})
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end, and return what it has printed."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        said = []
        for file in self.files:
            file.seek(0)
            said.append(file.read())
            file.close()
        return said[0], said[1]


def run_forked(
    script: Path, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, …)`."""
    running = Forked(script, arguments, cwd=cwd, env=env)
    out, err = running.communicate(timeout)
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def _ask(order: Mapping[str, Any]) -> Any:
    """What the server answers."""
    server = _server()
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


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
        order = json.loads(line)
        if "ended" in order:
            pid, status = os.waitpid(order["ended"], os.WNOHANG)
            os.write(1, json.dumps(os.waitstatus_to_exitcode(status) if pid else None).encode() + b"\n")
            continue
        ready = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(ready[1])
            os.read(ready[0], 1)  # wait until the caller knows this process's number, by which it kills it
            os.close(ready[0])
            return order
        os.close(ready[0])
        os.write(1, b"%d\n" % pid)
        os.close(ready[1])


def become(order: Mapping[str, Any]) -> None:
    """Turn this forked process into `python` with the ordered command."""
    os.setsid()
    places = ((0, os.devnull, os.O_RDONLY), (1, order["out"], os.O_RDWR), (2, order["err"], os.O_RDWR))
    for number, path, flags in places:
        opened = os.open(path, flags | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(order["cwd"])
    settle(order["argv"], order["env"])
    sys.path[0] = str(Path(sys.argv[0]).parent)
    if order["spares"]:
        set_aside(4 if "-m" in sys.argv else "hardware=cpu_ddp" in sys.argv)
    runpy.run_path(sys.argv[0], run_name="__main__")


def settle(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Have this environment and these arguments."""
    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(argv)


def set_aside(count: int) -> None:
    """Fork processes that take the places of those which this one starts with the same script: ranks, jobs of a sweep.

    They are its children and have its open files, as those would. What remains to do is the same in either process.
    """
    spares: list[tuple[int, int]] = []
    for _ in range(count):
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            for other in (writer, *(writer for _, writer in spares)):
                os.close(other)
            with os.fdopen(reader) as file:
                text = file.read()
            if not text:  # that process has ended and never needed this one
                os._exit(0)
            order = json.loads(text)
            if order["session"]:
                os.setsid()
            settle(order["argv"], order["env"])
            return
        os.close(reader)
        spares.append((pid, writer))

    class Popen(subprocess.Popen):
        def __init__(self, args: Sequence[str], **options: Any) -> None:
            self.options = options
            super().__init__(args, **options)

        def _execute_child(self, args: Sequence[str], *more: Any) -> None:
            if not spares or list(args[:2]) != [sys.executable, str(Path(sys.argv[0]).absolute())]:
                return super()._execute_child(args, *more)
            self.pid, writer = spares.pop(0)
            env = self.options.get("env") or dict(os.environ)
            order = {"argv": list(args[1:]), "env": env, "session": self.options.get("start_new_session", False)}
            with os.fdopen(writer, "w") as file:
                json.dump(order, file)
            self._child_created = True

    subprocess.Popen = Popen


if __name__ == "__main__":
    for _name in IMPORTED:
        importlib.import_module(_name)
    gc.freeze()  # or else every process would visit all of these objects at its end, and so copy their memory
    if (_order := serve()) is not None:
        become(_order)
