"""Checks of typed overrides before Hydra reads them: refuse those that its parser or its composing cannot handle.

Hydra reports most mistakes with its own exceptions. Others, such as a group that is null, a number of 5,000 digits or
deeply nested lists, end in any exception that the code underneath happens to raise.
"""

from __future__ import annotations

import io
import re
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import OverrideParseException

from selfdraft.app.terminal.command_line import quoted
from selfdraft.app.terminal.errors import HOW_TO_QUOTE
from selfdraft.core.errors import UserError
from selfdraft.core.json_text import lone_surrogate
from selfdraft.core.messages import printable

HOME = re.compile(r"([^=\s]+=)(~[^,]*)", re.DOTALL)
SEVERAL = ("experiment", "hparams")  # groups that may have no choice, or several
OF_SWEEPS = ("hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher")  # how these overrides begin
MAX_SHOWN = 80  # characters of an override that a message repeats


def with_home(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ~ expanded in `key=~/folder`; shells expand it only at the beginning of an argument."""
    return [_with_home(argument) for argument in arguments]


def _with_home(argument: str) -> str:
    if (found := HOME.fullmatch(argument)) is None:
        return argument
    key, path = found.groups()
    try:
        return key + quoted(str(Path(path).expanduser()))
    except (RuntimeError, ValueError):  # there is no such user, or there cannot be one of this name
        return key + quoted(path)


def checked(arguments: Sequence[str], conf: Path) -> list[str]:
    """Return the arguments if all can be read; `experiment=null` becomes `experiment=[]`, no experiment.

    Args:
        conf: the folder of the groups.

    Raises:
        UserError: an override cannot be read, its value cannot be a choice of its group, it is for sweeps and this is
            none, or Hydra has no such option with dashes.
    """
    given = _given(arguments)
    parsed = {text: _parsed(text) for text in given.overrides}
    for override in parsed.values():
        _refuse_no_choice(override, conf)
    if not (given.multirun or given.help or given.cfg or given.info):
        _refuse_a_sweep_without_its_flag(given.overrides)
    nothing = [text for text, override in parsed.items() if override.key_or_group in SEVERAL and _is_null(override)]
    return [_key(argument) + "=[]" if argument in nothing else argument for argument in arguments]


def _given(arguments: Sequence[str]) -> Namespace:
    """Return the options with dashes, and the other arguments as `overrides`."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):  # argparse would print eight lines of usage
            return get_args_parser().parse_args(list(arguments))
    except SystemExit as ended:
        if not ended.code:
            raise
        reason = said.getvalue().strip().rpartition("error: ")[2]
        if reason.startswith("unrecognized"):  # argparse also names what follows, which may be right
            reason = f"unknown: {' '.join(each for each in reason.split() if each.startswith('-'))}"
        raise UserError(f"{_shown(reason)}; write options as group.option=value: --help lists them") from None


def _refuse_a_sweep_without_its_flag(overrides: Sequence[str]) -> None:
    """Refuse options that only sweeps have in a single run, where Hydra would ignore them."""
    if any(_key(text).lstrip("+~") == "hydra.mode" for text in overrides):
        return
    for text in overrides:
        if text.lstrip("+~").startswith(OF_SWEEPS):
            raise UserError(f"{_shown(text)} is an option of sweeps: add -m")


def _parsed(text: str) -> Override:
    if lone_surrogate(text):
        raise UserError(f"{_shown(text)}: not UTF-8; write it, and name files, in UTF-8")
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except OverrideParseException:
        raise UserError(f"{_shown(text)} cannot be read: {HOW_TO_QUOTE}") from None
    except RecursionError:
        raise UserError(f"{_shown(text)} is nested too deeply") from None
    except ValueError:
        raise UserError(f"{_shown(text)}: a number has too many digits") from None
    if not override.key_or_group:
        raise UserError(f"{_shown(text)} has no key: {HOW_TO_QUOTE}")
    return override


def _refuse_no_choice(override: Override, conf: Path) -> None:
    """Refuse values that cannot be the name of a choice; Hydra looks up the names."""
    group = override.key_or_group
    nested = group.replace(".", "/")
    if nested != group and (conf / nested).is_dir() and isinstance(override.value(), str | ChoiceSweep):
        given = (override.input_line or "").partition("=")[2]
        raise UserError(f"{_shown(override.input_line)}: choose one with {nested}={_shown(given)}")
    if override.is_delete() or not ((conf / group).is_dir() or group.startswith("hydra/")):
        return
    value = override.value()
    for each in value.list if isinstance(value, ChoiceSweep) else [value]:
        if isinstance(each, str | dict) or (group in SEVERAL and (each is None or isinstance(each, list))):
            continue
        if isinstance(value, ChoiceSweep) or not override.is_sweep_override():
            choices = ", ".join(sorted(file.stem for file in (conf / group).glob("*.yaml")))
            choose = f"; choose one of {choices}" if choices else ": give the name of one"
            raise UserError(f"{_shown(override.input_line)}: no such choice{choose}")


def _is_null(override: Override) -> bool:
    return not override.is_delete() and not override.is_sweep_override() and override.value() is None


def _key(argument: str) -> str:
    return argument.partition("=")[0]


def _shown(text: Any) -> str:
    text = str(text)
    return printable(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")
