"""Run `python run.py …` without the ten seconds that its imports take.

A server process makes the imports once for all processes of a test run, and then forks a new process for each command.
That process has its own session, folder, environment and open files, and ends as an interpreter does. The processes
that it starts itself, ranks and jobs, are forked as well. Of what Python does only at its start, `become` does what
tests need: the encoding of the output, and signals that are ignored. For one of each kind, tests start real processes
by `command`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

IMPORTED = (
    "datasets",
    "matplotlib.pyplot",
    "pandas",
    "peft",
    "transformers.models.llama.modeling_llama",
    "selfdraft.app.terminal.help",
    "selfdraft.app.terminal.overrides",
    "selfdraft.app.run",
)


class Forked:
    """A process of `python run.py …`, much as `subprocess.Popen` has it with two pipes of text."""

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        spares: bool = True,
        ignored: Sequence[signal.Signals] = (),
    ) -> None:
        """Start it.

        Args:
            spares: whether the processes that it starts are forked as well.
            ignored: signals that are ignored from the beginning, as SIGHUP is under nohup.
        """
        self.args = [str(script), *arguments]
        self.files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  (`communicate` closes them)
        # The files have no names, so the server opens them through this process.
        out, err = (f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self.files)
        order = {"argv": self.args, "cwd": str(cwd), "env": dict(env), "out": out, "err": err, "spares": spares}
        order["ignored"] = [int(number) for number in ignored]
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


class ForkedTrials:
    """In the place of the module `subprocess` in data/tables.py: a folder is tried in a process that is forked."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes a script."""
        self.script = folder / "trial.py"

    def run(self, command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        """Run `python -c CODE …`."""
        python, option, code, *arguments = command
        assert (python, option) == (sys.executable, "-c")
        self.script.write_text(code)
        return run_forked(self.script, arguments, cwd=Path.cwd(), env=os.environ, timeout=60)


def _ask(order: Mapping[str, Any]) -> Any:
    """What the server answers."""
    server = connect()
    server.write(json.dumps(order).encode() + b"\n")
    server.flush()
    return json.loads(server.readline())


@cache
def connect() -> Any:
    """Connect to the server of this test run, which the first process that needs it starts."""
    from command_line import environment

    place = Path(tempfile.gettempdir(), f"selfdraft-forks-{os.environ['SELFDRAFT_TEST_RUN']}.socket")
    with FileLock(f"{place}.lock"):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(place))
        except OSError:
            place.unlink(missing_ok=True)
            connection.close()
            connection, other = socket.socketpair()
            command = [sys.executable, __file__, str(place), str(other.fileno())]
            # Its output is a pipe, as that of most commands is: a stream that can be sought behaves otherwise.
            command = [sys.executable, __file__, str(place), str(other.fileno())]
            # Its output is a pipe, as that of most commands is: a stream that can be sought behaves otherwise.
            subprocess.Popen(command, env=environment(), pass_fds=[other.fileno()], stdout=subprocess.PIPE)
            other.close()
            assert connection.recv(1), "the server has not started"
    atexit.register(connection.close)
    return connection.makefile("rwb")


def serve(place: str, first: socket.socket) -> dict[str, Any] | None:
    """Fork for each order that comes in; returns the order in the forked process, and None when nobody is connected.

    Args:
        place: path at which processes connect. first: the connection of the process that has started this one.
    """
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(place)
    listening.listen()
    first.send(b"1")
    rests = {first: b""}  # read by system calls: the forked process would inherit what a buffer holds
    with selectors.DefaultSelector() as waiting:
        for each in (listening, first):
            waiting.register(each, selectors.EVENT_READ)
        while rests:
            for found, _ in waiting.select():
                client = found.fileobj
                if client is listening:
                    client = listening.accept()[0]
                    waiting.register(client, selectors.EVENT_READ)
                    rests[client] = b""
                    continue
                read = client.recv(1 << 16)
                if not read:
                    waiting.unregister(client)
                    client.close()
                    del rests[client]
                    continue
                *lines, rests[client] = (rests[client] + read).split(b"\n")
                for line in lines:
                    order = _answered(client, json.loads(line))
                    if order is not None:
                        for each in (listening, *rests):
                            each.close()
                        return order
    for path in (place, f"{place}.lock"):
        Path(path).unlink(missing_ok=True)
    return None


def _answered(client: socket.socket, order: dict[str, Any]) -> dict[str, Any] | None:
    """Answer an order; in a process that is forked for it, return it."""
    if "ended" in order:
        pid, status = os.waitpid(order["ended"], os.WNOHANG)
        client.sendall(json.dumps(os.waitstatus_to_exitcode(status) if pid else None).encode() + b"\n")
        return None
    ready = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(ready[1])
        os.read(ready[0], 1)  # wait until the caller knows this process's number, by which it kills it
        os.close(ready[0])
        return order
    os.close(ready[0])
    client.sendall(b"%d\n" % pid)
    os.close(ready[1])
    return None


def become(order: Mapping[str, Any]) -> None:
    """Turn this forked process into `python` with the ordered command."""
    os.setsid()
    places = ((0, os.devnull, os.O_RDONLY), (1, order["out"], os.O_RDWR), (2, order["err"], os.O_RDWR))
    for number, path, flags in places:
        opened = os.open(path, flags | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(order["cwd"])
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    settle(order["argv"], order["env"])
    if "PYTHONIOENCODING" in os.environ:
        encoding = os.environ["PYTHONIOENCODING"]
        for name, number in (("stdout", 1), ("stderr", 2)):
            setattr(sys, name, open(number, "w", encoding=encoding, closefd=False))  # noqa: SIM115
    sys.path[0] = str(Path(sys.argv[0]).parent)
    if order["spares"]:
        set_aside(4 if "-m" in sys.argv else "hardware=cpu_ddp" in sys.argv)
    os._exit(run_script(sys.argv[0]))


def run_script(path: str) -> int:
    """Run a script as `__main__`, do what an interpreter does at its end, and return the exit status.

    Only the modules are not taken down, which would take half a second.
    """
    status: object = 0
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  (waits for threads)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        traceback.print_exc()
        status = 120
    sys.stderr.flush()
    return status or 0


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
    gc.disable()
    for _name in IMPORTED:
        importlib.import_module(_name)
    gc.enable()
    gc.freeze()  # or else every process would visit all of these objects at its end, and so copy their memory
    if (_order := serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))) is not None:
        become(_order)
