"""Print untrusted text safely to a terminal, and report harmless failures in a warning line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Characters that a terminal would obey instead of showing: C0 and C1 controls except newline and tab; the characters
# that change the direction of writing, which can make a line read as another one; and unpaired halves of characters,
# which cannot be encoded.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return `text` with every character that a terminal would obey written as an escape, such as \x1b."""
    return _OBEYED.sub(lambda found: _escape(found.group()), text)


def one_line(text: object) -> str:
    """Return `text` as one printable line: white space of every kind becomes single spaces."""
    return printable(" ".join(str(text).split()))


def warn(line: object) -> None:
    """Print a warning line to stderr."""
    print(f"warning: {one_line(line)}", file=sys.stderr)


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Turn any exception of a block that the work does not depend on into a warning line that begins with `what`."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()
        warn(f"{what}: {reason[0] if reason else type(error).__name__}")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
