"""What a wrong configuration or file looks like to the user: one line, exit status 2, no traceback."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import wraps

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from selfdraft.core.errors import UserError

HOW_TO_QUOTE = """write key=value, and values with commas, quotes or brackets in quotes twice: key='"a, b"'"""
FULL_ERROR = "HYDRA_FULL_ERROR"
TERSE = "SELFDRAFT_TERSE_ERRORS"  # set by us, so that processes we start know that FULL_ERROR is not the user's wish


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the user's mistakes into one line and exit status 2. HYDRA_FULL_ERROR=1 shows the traceback instead.

    Hydra prints and exits on its own unless that variable is set, so it is set here to have the exception itself.
    """
    if FULL_ERROR not in os.environ:
        os.environ[FULL_ERROR] = os.environ[TERSE] = "1"
    try:
        yield
    except Exception as error:
        line = explain(error)
        if line is None or not is_terse():
            raise
        fail(line)


def one_line_script(name: str) -> Callable[[Callable[[list[str]], None]], Callable[[list[str]], int]]:
    """Decorate the `main` of scripts/<name>.py: it returns the exit status, 2 behind one line for a user's mistake."""

    def decorate(main: Callable[[list[str]], None]) -> Callable[[list[str]], int]:
        @wraps(main)
        def run(arguments: list[str]) -> int:
            try:
                main(arguments)
            except Exception as error:
                if (line := explain(error)) is None:
                    raise
                print(f"{name}: {line}", file=sys.stderr)
                return 2
            return 0

        return run

    return decorate


def is_terse() -> bool:
    """Whether the user wants one line (the default) rather than a traceback."""
    return os.environ.get(TERSE) == "1"


def fail(line: str) -> None:
    """Print the line and leave with status 2.

    Raises:
        SystemExit: always.
    """
    sys.stdout.flush()
    if rank_zero_only.rank in (None, 0):  # every process of a DDP run meets the same mistake
        print(f"selfdraft: {line}", file=sys.stderr)
    sys.exit(2)


def explain(error: BaseException) -> str | None:
    """The one line for a mistake of the user's; None for anything else, which is a bug and wants its traceback."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        choices = sorted(option for option in error.options if option != "schema")
        return f"{group}={choice}: no such choice{_near(choice, choices)}; choose one of {', '.join(choices)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read: {HOW_TO_QUOTE}"
    if isinstance(error, OmegaConfBaseException):
        return _explain_omegaconf(error)
    if isinstance(error, HydraException):
        if str(error).startswith("Ambiguous value for argument"):
            return f"{str(error).splitlines()[0].split(chr(39))[1]!r} is ambiguous: {HOW_TO_QUOTE}"
        if isinstance(error.__cause__, OmegaConfBaseException):
            return _explain_omegaconf(error.__cause__)
        return _first_line(error)
    return None


def _explain_omegaconf(error: OmegaConfBaseException) -> str:
    key = error.full_key or str(error.key)
    if isinstance(error, MissingMandatoryValue):
        missing = str(error).splitlines()[0].rpartition(":")[2].strip() or key
        return f"{missing} is needed: give it as {missing}=<value>"
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        known = []
        if is_dataclass(error.object_type):
            known = [f.name for f in fields(error.object_type) if f.name not in ("name", "defaults")]
        there = f"; there are {', '.join(known)}" if known else ""
        return f"{key}: no such option{_near(str(error.key), known)}{there}"
    if isinstance(error, ValidationError) and "is not a ListConfig" in str(error):
        return f"{key}: must be a list: give it as {key}=[<value>,<value>]"
    return f"{key}: {_first_line(error)}"


def _near(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
