"""Output to the terminal: escape sequences in texts from others are shown, and never executed by the terminal."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from selfdraft.core.messages import printable
from selfdraft.tracking.files.rank import process_rank

PLAIN_WIDTH = 100  # columns where there is no terminal: a log file, a pipe
PASSING_WIDTH = 20  # columns of a line that is soon overwritten
ESCAPING = "selfdraft.escaping"  # name of our error handler for characters that an encoding lacks
_INSTEAD = {"·": "-", "×": "x", "–": "-", "…": "...", "━": "=", "┈": ".", "⏎": "\\n", "⇥": "\\t", "✗": "x"}
_CURSOR = re.compile("\n*(\x1b\\[A)*")  # how tqdm moves between bars, in a separate write


class PlainConsole(Console):
    """A rich console that takes texts as they are: no markup, no emoji codes, no control characters.

    Prompts, answers, categories, and names of files and models come from others. To style a text, pass rich's `Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, **options, "markup": False, "emoji": False})

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a rich text of a plain one, escaped first, because rich measures it and drops some characters."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render, and escape all control characters except rich's own cursor movements."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and copy it in plain text to the record of standard output, where there is one.

        Rich refreshes a bar by printing a `Control`, which is no text.
        """
        super().print(*objects, **options)
        record = None if self.quiet or self._file is not None else record_of(sys.stdout)
        if record is not None and not (objects and all(isinstance(each, Control) for each in objects)):
            PlainConsole(file=record, width=PLAIN_WIDTH, soft_wrap=self.soft_wrap).print(*objects, **options)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """Show a spinner beside `status`, as a `Text`, because rich would read a string as markup."""
        return super().status(Text(status) if isinstance(status, str) else status, **options)

    @property
    def file(self) -> IO[str]:
        """The stream without the wrappers of rich and of `Shielded`: the escape sequences of styles must reach it."""
        stream = super().file
        while (inner := getattr(stream, "rich_proxied_file", None)) is not None:
            stream = inner
        return stream

    @file.setter
    def file(self, stream: IO[str]) -> None:
        Console.file.fset(self, stream)  # type: ignore[attr-defined]  # mypy takes a class's property for a function

    @property
    def encoding(self) -> str:
        """The stream's encoding, by which rich decides whether to draw boxes in ASCII."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()


def make_console(**options: Any) -> PlainConsole:
    """Return a console that does not fall back to 80 columns when its output goes to a file."""
    console = PlainConsole(**options)
    return console if console.is_terminal else PlainConsole(width=PLAIN_WIDTH, **options)


def tell_in_passing(text: str) -> None:
    """Write a line to a terminal that the next output overwrites; an empty text clears it. Files get nothing."""
    if sys.stderr.isatty() and process_rank() == 0:
        print(f"{text:<{PASSING_WIDTH}}", end="\r", file=sys.stderr, flush=True)


class Shielded:
    """A text stream that escapes control characters, for code that prints without our console."""

    def __init__(self, stream: IO[str]) -> None:
        self.rich_proxied_file = stream  # rich looks for the inner stream under this name
        self.record: IO[str] | None = None  # gets a copy, see recording.py

    def write(self, text: str) -> int:
        """Write `text` escaped, except carriage returns at either end, which belong to progress bars."""
        stream, given = self.rich_proxied_file, len(text)
        if not (_CURSOR.fullmatch(text) and stream.isatty()):
            inner = text.strip("\r")
            before, _, after = text.partition(inner) if inner else (text, "", "")
            text = before + printable(inner) + after
        stream.write(text)
        if self.record is not None and not text.startswith("\r"):  # that would be a bar, which is drawn many times
            self.record.write(printable(text))
        return given

    def writelines(self, lines: Any) -> None:
        """Write the lines one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def record_of(stream: Any) -> IO[str] | None:
    """Return the file that gets a copy of what is written to a stream; None if there is none."""
    while stream is not None:
        if isinstance(stream, Shielded) and stream.record is not None:
            return stream.record
        stream = getattr(stream, "rich_proxied_file", None)
    return None


def shield_output() -> None:
    """Wrap stdout and stderr so that no text controls the terminal and no character raises an encoding error.

    If a stream's encoding (ASCII, Latin-1) lacks a character, an escape or a similar character is written instead.
    """
    codecs.register_error(ESCAPING, _escaped)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, Shielded):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ESCAPING)
        setattr(sys, name, Shielded(stream))


@contextmanager
def shielded_output() -> Iterator[None]:
    """Apply `shield_output` within a `with` block, and restore both streams after it."""
    before = sys.stdout, sys.stderr
    shield_output()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def drop_unwritten() -> None:
    """Flush stdout, and discard what cannot be written because of a full disk or a closed pipe.

    Otherwise Python would try again when the process ends, and print a traceback then.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # the stream has no file descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] in _INSTEAD:
        return _INSTEAD[error.object[error.start]], error.start + 1
    return codecs.backslashreplace_errors(error)
