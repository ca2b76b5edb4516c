"""File paths as users type them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from selfdraft.core.errors import UserError


def expanded(path: str | Path, option: str) -> Path:
    """Return the path with a leading `~` or `~name` replaced by the home folder.

    Args:
        path: as the user typed it.
        option: the option that the path was given in, for the message.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # ValueError: a name that no user can have, such as one with a null byte
        raise UserError(
            f"{option}={path}: there is no home folder {Path(path).parts[0]}; write the path in full"
        ) from None


def expanded_name(name: str, option: str) -> str:
    """Do the same for what may also be a name of the Hub, which is no path: it is returned unchanged.

    Raises:
        UserError: as `expanded`.
    """
    return str(expanded(name, option)) if name.startswith("~") else name


def cache_folder() -> Path:
    """Return the folder of what is made once and kept: `$SELFDRAFT_CACHE`, or ``~/.cache/selfdraft``.

    Raises:
        UserError: as `expanded`.
    """
    return expanded(os.environ.get("SELFDRAFT_CACHE") or "~/.cache/selfdraft", "SELFDRAFT_CACHE")


def file_at(path: str | Path, name: str) -> Path:
    """Return the file that a user means: `path` itself, or the file called `name` in it where it is a folder.

    A `~` without a home folder, and a path that no file system accepts, are returned unchanged: opening such a file
    raises an error with the reason.
    """
    path = Path(path)
    with suppress(RuntimeError, ValueError):
        path = path.expanduser()
    with suppress(OSError, ValueError):
        return path / name if path.is_dir() else path
    return path
