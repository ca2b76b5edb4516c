"""Render chat templates in a separate process with a time and a memory limit, because they are programs from others.

jinja's sandbox keeps a template from files and from Python's internals, but not from endless loops or from texts that
fill the memory. A process, unlike a thread, can be ended whatever it does, and this one gets none of the environment's
secrets. It is started at the first template, serves all of them, and ends with the process that asks.

Both ends are in this file: requests and answers are lines of JSON, and this module, run as a program, answers.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import selfdraft
from selfdraft.core.errors import UserError

SECONDS = 10  # for one conversation: real templates take milliseconds
MEMORY = 1_000_000_000  # bytes beyond what the process has when it is ready
MAX_TEMPLATE = 1_000_000  # characters
MAX_TEXT = 1_000_000  # characters of a rendered conversation, besides 10 for each character of its messages
MODULE = "selfdraft.models.loading.rendering"
READY = "ready\n"  # the first line of the process: a failure before it is not the template's fault
NEEDED = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "TMPDIR", "VIRTUAL_ENV")


def render(template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any], *, answer: bool) -> str:
    """Return the text of a conversation.

    Args:
        variables: further names that the template may use, such as the special tokens.
        answer: whether the text ends where the next answer begins.

    Raises:
        UserError: the template is malformed, raises, or needs more time, memory or text than any real one.
    """
    if len(template) > MAX_TEMPLATE:
        raise UserError(f"the chat template has {len(template):,} characters; more than {MAX_TEMPLATE:,} are refused")
    limit = MAX_TEXT + 10 * sum(len(message["content"]) for message in messages)
    said = _RENDERER.ask([template, list(messages), dict(variables), answer, limit, SECONDS])
    if said is None:
        raise UserError(
            f"the chat template was stopped: one conversation takes it more than {SECONDS} s or {MEMORY / 1e6:,.0f} MB"
        )
    if "error" in said:
        raise UserError(f"the chat template fails: {said['error']}")
    return said["text"]


class _Renderer:
    """The asking end of the pipe: it sends one request at a time, from any thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner, self._lock = 0, threading.Lock()

    def ask(self, request: list[Any]) -> dict[str, str] | None:
        """Return the answer of the other end; None if it died while answering.

        Raises:
            UserError: the other end does not start.
        """
        with self._lock:
            try:
                process = self._started()
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(json.dumps(request, default=str) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:  # Ctrl-C: a line may still come, and must not be taken for the next answer
                self.close()
                raise
            if not line.endswith("\n"):
                self.close()
                return None
            return json.loads(line)

    def close(self) -> None:
        """End the process, if this process has started one."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.close()
            known = {name: os.environ[name] for name in NEEDED if name in os.environ}
            ours = Path(selfdraft.__file__).parents[1]
            paths = [str(ours), *filter(None, [known.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=ours,  # Python imports from there first, and the user's folder may hold a jinja2.py
                env={**known, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"},
                encoding="utf-8",
                start_new_session=True,  # so that Ctrl-C reaches only the process that asks
            )
            self._owner = os.getpid()
            assert self._process.stdout is not None
            if self._process.stdout.readline() != READY:
                raise UserError(
                    f"the process that renders chat templates does not start: `python -m {MODULE}` says why"
                )
        return self._process


_RENDERER = _Renderer()
atexit.register(_RENDERER.close)


def serve() -> None:
    """Render the requests on standard input, line by line, until it is closed."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with contextlib.suppress(OSError, ValueError):  # systems without such a limit have only the time limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(READY, end="", flush=True)
    for line in sys.stdin:
        template, messages, variables, answer, limit, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process, in the middle of anything
        try:
            rendered: Any = render_jinja_template(
                [messages], chat_template=template, add_generation_prompt=answer, **variables
            )
            (text,), _ = rendered
            if len(text) > limit:
                raise ValueError(f"it makes {len(text):,} characters of one conversation")
            said = {"text": text}
        except MemoryError:
            break
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"[:1000]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    serve()
