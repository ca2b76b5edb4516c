"""Paths as users type them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def file_at(path: str | Path, name: str) -> Path:
    """Return the file that a user means: `path` itself, or the file called `name` in it where it is a folder.

    A `~` of nobody stays as it is, and so does what no file system takes: opening it tells why.
    """
    path = Path(path)
    with suppress(RuntimeError):
        path = path.expanduser()
    with suppress(OSError, ValueError):
        return path / name if path.is_dir() else path
    return path
