"""run.log: what a run prints, and the error that ended it, kept in its folder in plain text.

What code prints by itself reaches the file through `Shielded`, and what our consoles print through
`PlainConsole.print`, once more in plain text: escape sequences and progress bars belong to a terminal.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from selfdraft.app.terminal.console import Shielded
from selfdraft.app.terminal.errors import explain

LOG = "run.log"


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Append what is printed within a `with` block to the file at `path`, and still print it.

    Args:
        path: a file in a folder that exists. A resumed run appends to what the interrupted one has left.
    """
    before = sys.stdout, sys.stderr
    # Line buffered, so that a killed process leaves what it has printed.
    with path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as file:
        try:
            for name in ("stdout", "stderr"):
                if _is(getattr(sys, name), file):  # the user has redirected the output to this very file
                    continue
                shielded = Shielded(getattr(sys, name))
                shielded.record = file
                setattr(sys, name, shielded)
            yield
        finally:
            sys.stdout, sys.stderr = before


def _is(stream: Any, file: IO[str]) -> bool:
    """Return whether a stream writes to a file."""
    try:
        return os.path.sameopenfile(stream.fileno(), file.fileno())
    except (OSError, ValueError, AttributeError):  # a stream without a file, or a closed one
        return False


def log_error(path: Path, error: BaseException) -> str:
    """Append an error to the run's log, and return it as one line: what a user did wrong, or the type of a bug.

    Args:
        path: the log. Nothing is written if its folder does not exist.
        error: a bug is written with its traceback, which is what one needs to mend it.
    """
    line = explain(error)
    text = f"selfdraft: {line}\n" if line is not None else "".join(traceback.format_exception(error))
    if path.parent.is_dir():
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    return line if line is not None else f"{type(error).__name__}: {error}".splitlines()[0]
