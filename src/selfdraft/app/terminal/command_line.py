"""Changes to the command line before Hydra reads it: flags first, prompts quoted, and `drafter.from` expanded.

And the command itself, for processes that run it again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError

PROMPT = re.compile(r"(\+{0,2}prompt=)(.*)", re.DOTALL)
QUOTED = re.compile(r"""(["'])(?:\\.|(?!\1)[^\\])*\1""", re.DOTALL)
FROM = "drafter.from="
DRAFTER = "drafter="
FLAGS = ("-m", "--multirun", "-h", "--help")


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `-m` and `--help` in front, because Hydra takes no option after one in the middle."""
    return [*(each for each in arguments if each in FLAGS), *(each for each in arguments if each not in FLAGS)]


def quoted_prompt(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the value of `prompt=…` quoted, so that Hydra does not parse its commas and brackets.

    A prompt is text: `${oc.env:HOME}` in it is not looked up. A value that is quoted already keeps its quotes, and
    quoting twice changes nothing.
    """
    return [_with_quoted_prompt(argument) for argument in arguments]


def _with_quoted_prompt(argument: str) -> str:
    if (found := PROMPT.fullmatch(argument)) is None:
        return argument
    key, text = found.groups()
    if text in ("", "null"):
        return argument
    if QUOTED.fullmatch(text):
        # Hydra's own notation, in which \\${ already means ${: escape only those that are not escaped yet.
        return key + re.sub(r"(?<!\\)((?:\\\\)*)\$\{", r"\1\\${", text)
    return key + quoted(text)


def quoted(text: str) -> str:
    """Return `text` in Hydra's notation, from which Hydra and OmegaConf read exactly this text, whatever it holds."""
    text = literal(text)
    # In Hydra's quoted strings a backslash is literal unless it belongs to a run that ends at a quote: double those.
    parts = text.split('"')
    escaped = [part + "\\" * (len(part) - len(part.rstrip("\\"))) for part in parts]
    return '"' + '\\"'.join(escaped) + '"'


def literal(text: str) -> str:
    """Return `text` so that OmegaConf reads exactly it, and no interpolation."""
    # In OmegaConf \\${ means ${, and backslashes before it mean half as many: double those.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def as_override(value: Any) -> str:
    """Return a plain value in Hydra's notation."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{','.join(as_override(item) for item in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def with_artifact(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `drafter.from=PATH` replaced by the options of the artifact at PATH, as if typed.

    `from` is a keyword of Python, so it cannot be a field of a schema. This way the options are in the run's
    config.yaml, and options typed after them override them. `artifact=PATH` is added, to compare models later.

    Raises:
        UserError: there is no such artifact, or it belongs to another drafter than the one asked for.
    """
    if not any(argument.startswith(FROM) for argument in arguments):
        return list(arguments)
    # Imported here: without an artifact, a command needs no drafter before its options are known to be right.
    from selfdraft.drafters.presets import PRESETS, routed
    from selfdraft.tracking.files.artifact import Artifact

    out: list[str] = []
    for argument in arguments:
        if not argument.startswith(FROM):
            out.append(argument)
            continue
        path = argument.removeprefix(FROM)
        path = path[1:-1] if QUOTED.fullmatch(path) else path
        found = Artifact.read(Path(path))
        asked = next((a.removeprefix(DRAFTER) for a in arguments if a.startswith(DRAFTER)), None)
        if asked not in (None, found.drafter):
            raise UserError(f"drafter.from={path} is for drafter={found.drafter}, not for drafter={asked}")
        if asked is None:
            out.append(f"{DRAFTER}{found.drafter}")
        owned = routed(found.drafter, **found.options)
        if owned.path not in (None, PRESETS[found.drafter].path):
            out.append(f"drafter/path={owned.path}")
        out += [f"drafter.{name}={as_override(value)}" for name, value in owned.values.items()]
        out += [f"drafter.path.{name}={as_override(value)}" for name, value in owned.path_values.items()]
        out.append(f"artifact={quoted(path)}")
    return out


def entry_command() -> list[str]:
    """Return the command that started this process, without its arguments: a script, or a module run by `-m`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [sys.executable, "-m", spec.name] if spec else [sys.executable, str(Path(sys.argv[0]).absolute())]
