"""The one way to the terminal: what others wrote is shown there, and never obeyed by it."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from selfdraft.core.messages import printable

PLAIN_WIDTH = 100  # columns where there is no terminal to ask: a log file, a pipe
ESCAPING = "selfdraft.escaping"  # the name of our handler of characters that an encoding has not
_INSTEAD = {"·": "-", "×": "x", "–": "-", "…": "...", "━": "=", "┈": ".", "⏎": "\\n", "⇥": "\\t", "✗": "x"}
_CURSOR = re.compile("\n*(\x1b\\[A)*")  # how tqdm moves between bars, in a write of its own


class PlainConsole(Console):
    """A rich console that takes texts as they are: no markup, no emoji codes, no control characters.

    Prompts, answers, categories, paths and names of models come from others. Styles are given as rich's `Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, **options, "markup": False, "emoji": False})

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a rich text of a plain one, escaped before rich measures it, and drops some of what it holds."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render, and escape what a terminal would obey: all but rich's own cursor movements."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """A spinner beside `status`; rich would read a text as markup."""
        return super().status(Text(status) if isinstance(status, str) else status, **options)

    @property
    def file(self) -> IO[str]:
        """The stream below all that rich and we have wrapped around it: styles are escape sequences, and meant."""
        stream = Console.file.fget(self)
        while (inner := getattr(stream, "rich_proxied_file", None)) is not None:
            stream = inner
        return stream

    @file.setter
    def file(self, stream: IO[str]) -> None:
        Console.file.fset(self, stream)

    @property
    def encoding(self) -> str:
        """The stream's encoding: rich draws boxes in ASCII where it has no other characters."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()


def make_console(**options: Any) -> PlainConsole:
    """A console that does not fall back to 80 columns when its output goes to a file."""
    console = PlainConsole(**options)
    return console if console.is_terminal else PlainConsole(width=PLAIN_WIDTH, **options)


class Shielded:
    """A text stream that escapes what a terminal would obey, for all who print past our console."""

    def __init__(self, stream: IO[str]) -> None:
        self.rich_proxied_file = stream  # by this name rich finds the stream to write its styles to

    def write(self, text: str) -> int:
        """Write `text` escaped; a carriage return at either end is a progress bar's, and stays."""
        stream, given = self.rich_proxied_file, len(text)
        if not (_CURSOR.fullmatch(text) and stream.isatty()):
            inner = text.strip("\r")
            before, _, after = text.partition(inner) if inner else (text, "", "")
            text = before + printable(inner) + after
        stream.write(text)
        return given

    def writelines(self, lines: Any) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def shield_output() -> None:
    """From now on, nothing printed to stdout or stderr steers the terminal, and no character ends the run.

    Streams whose encoding lacks a character (ASCII, Latin-1) get an escape, or something alike, in its place.
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
    """`shield_output` within the block."""
    before = sys.stdout, sys.stderr
    shield_output()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def drop_unwritten() -> None:
    """Forget what was printed and cannot be written, on a full disk or into a closed pipe; the rest is written.

    Python would try again when the process ends, and print a traceback then.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # a stream without a file of the system
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] in _INSTEAD:
        return _INSTEAD[error.object[error.start]], error.start + 1
    return codecs.backslashreplace_errors(error)
