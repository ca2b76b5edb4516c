"""Error messages: a user's mistake in the configuration or a file ends in one line and exit status 2, no traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path

from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from selfdraft.app.terminal.console import drop_unwritten, shielded_output
from selfdraft.app.terminal.ranks import tell_mistake
from selfdraft.app.terminal.signals import INTERRUPTED
from selfdraft.app.terminal.suggestions import choices_with, near, unknown_option
from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line

HOW_TO_QUOTE = """write key=value, and values with commas, quotes or brackets in quotes twice: key='"a, b"'"""
FULL_ERROR = "HYDRA_FULL_ERROR"
# Errors of a disk or a file name: they are no bugs, so they are explained without a traceback.
OF_THE_DISK = {
    errno.ENOSPC: "the disk is full: make room, and the same command goes on",
    errno.EDQUOT: "your share of the disk is used up: make room, and the same command goes on",
    errno.EFBIG: "the file has grown to the limit that is set for files",
    errno.EROFS: "this disk cannot be written: use another folder",
    errno.EACCES: "you have no permission: use another folder, or change its permissions",
    errno.EPERM: "you have no permission: use another folder, or change its permissions",
    errno.ENOENT: "there is no such file or folder, and none can be made there",
    errno.EEXIST: "there is a file where a folder is needed: use another folder",
    errno.EISDIR: "there is a folder where a file is needed: use another folder",
    errno.ENOTDIR: "there is a file where a folder is needed: use another folder",
    errno.ENAMETOOLONG: "the name is too long: use a shorter one",
    errno.ELOOP: "its links lead round in a circle: use another folder",
    errno.EIO: "the disk fails",
    errno.ESTALE: "the network drive has lost it",
}
# How OmegaConf reports a value of a wrong type, and its types in words.
NOT_CONVERTED = re.compile(
    r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a valid) (Integer|Float|bool)"
)
IN_WORDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TERSE = "SELFDRAFT_TERSE_ERRORS"  # set by us: tells the processes we start that FULL_ERROR was not set by the user


class JobFailed(CompactHydraException):
    """Tells the sweeper that jobs failed. Hydra prints a "compact" exception as one line instead of a traceback."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the user's mistakes into one line and exit status 2, and Ctrl-C into one line and status 130.

    HYDRA_FULL_ERROR=1 shows the traceback instead. Failed jobs of a sweep are no mistake in its command: then
    the status is 1.

    Unless that variable is set, Hydra itself prints the error and exits, so it is set inside to get the exception.
    """
    ours = {} if FULL_ERROR in os.environ else {FULL_ERROR: "1", TERSE: "1"}
    os.environ.update(ours)
    try:
        with shielded_output():
            try:
                yield
                sys.stdout.flush()
            except KeyboardInterrupt:  # while the imports are made; once a run has begun, `lifecycle` takes it
                if not is_terse():
                    raise
                fail("stopped; repeat the command to start it again", status=INTERRUPTED)
            except Exception as error:
                line = explain(error)
                if line is None or not is_terse():
                    raise
                fail(line, status=1 if isinstance(error, JobFailed) else 2)
    finally:
        for name in ours:
            os.environ.pop(name, None)


def one_line_script(name: str) -> Callable[[Callable[[list[str]], None]], Callable[[list[str]], int]]:
    """Decorate the `main` of a script `name`: print a mistake as one line, and return the exit status (0 or 2)."""

    def decorate(main: Callable[[list[str]], None]) -> Callable[[list[str]], int]:
        @wraps(main)
        def run(arguments: list[str]) -> int:
            with shielded_output():
                try:
                    main(arguments)
                    sys.stdout.flush()
                except Exception as error:
                    if (line := explain(error)) is None:
                        raise
                    drop_unwritten()
                    print(f"{name}: {one_line(line)}", file=sys.stderr)
                    return 2
            return 0

        return run

    return decorate


def is_terse() -> bool:
    """Return whether the user wants one line (the default) rather than a traceback."""
    return os.environ.get(TERSE) == "1"


def fail(line: str, status: int = 2) -> None:
    """Print the line and exit.

    Raises:
        SystemExit: always.
    """
    tell_mistake(one_line(line))
    sys.exit(status)


def explain(error: BaseException) -> str | None:
    """Return the line that explains a user's mistake; None for any other error: a bug, which needs its traceback."""
    if isinstance(error, UserError):
        return one_line(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        choices = sorted(option for option in error.options if option != "schema")
        return f"{group}={choice}: no such choice{near(choice, choices)}; choose one of {', '.join(choices)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read: {HOW_TO_QUOTE}"
    if isinstance(error, OmegaConfBaseException):
        return _explain_omegaconf(error)
    if isinstance(error, BrokenPipeError):
        return "nothing more can be written: the program that read the output has ended"
    if isinstance(error, OSError) and error.errno in OF_THE_DISK and error.filename is not None:
        return f"{error.filename}: {OF_THE_DISK[error.errno]}"
    if isinstance(error, OSError) and error.errno in FULL:  # a failed write names no file: it may be stdout's
        return f"nothing more can be written: {OF_THE_DISK[error.errno]}"
    if isinstance(error, HydraException):
        if str(error).startswith("Could not override 'drafter/path'."):
            return "drafter/path: the chosen drafter runs no part of the model, so it takes no path"
        if str(error).startswith("Ambiguous value for argument"):
            given = str(error).splitlines()[0].split("'")[1]
            return f"{given!r} has several values: add -m for a sweep; otherwise {HOW_TO_QUOTE}"
        if isinstance(error.__cause__, OmegaConfBaseException):
            return _explain_omegaconf(error.__cause__)
        return _first_line(error)
    if _while_composing(error):
        return (
            f"the configuration cannot be composed ({type(error).__name__}: {_first_line(error)}): check what you typed"
        )
    return None


def _while_composing(error: BaseException) -> bool:
    """Return whether Hydra was composing: our own configuration composes, so something that was typed is wrong."""
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(Path(file).parts[-3:] == ("hydra", "_internal", "config_loader_impl.py") for file in files)


def _explain_omegaconf(error: OmegaConfBaseException) -> str:
    key = error.full_key or str(error.key)
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        missing = str(error).splitlines()[0].rpartition(":")[2].strip() or key
        return f"{missing} is needed: give it as {missing}=<value>"
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        known = []
        if is_dataclass(error.object_type):
            known = [f.name for f in fields(error.object_type) if f.name not in ("name", "defaults")]
        if (
            key == f"drafter.{error.key}"
            and "path" in known
            and (owners := choices_with("drafter.path", str(error.key)))
        ):
            if "trained" in owners:  # the path that takes the weights of every recipe
                return f"{key}: a path has this option: write drafter/path=trained drafter.path.{error.key}=<value>"
            which = f"the path{'s' * (len(owners) > 1)} {', '.join(owners)}"
            return f"{key}: a path has this option: write drafter.path.{error.key}=<value>; {which} can have it"
        return unknown_option(key, known)
    if isinstance(error, ValidationError) and "is not a ListConfig" in str(error):
        return f"{key}: must be a list: give it as {key}=[<value>,<value>]"
    if isinstance(error, ValidationError) and str(error).splitlines()[0].endswith("is not Optional"):
        return f"{key}: null is no value for it; leave it out, or give one"
    if isinstance(error, ValidationError) and (found := NOT_CONVERTED.match(str(error))):
        return f"{key}={found[1]:.60}: must be {IN_WORDS[found[2]]}"
    return f"{key}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
