"""What is done to the command line before Hydra reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from selfdraft.core.errors import UserError
from selfdraft.tracking.artifact import Artifact

PROMPT = "prompt="
FROM = "drafter.from="
DRAFTER = "drafter="


def quoted_prompt(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the value of `prompt=…` quoted for Hydra, which would read its commas and brackets itself.

    A value that is in quotes already stays as it is: quoting twice changes nothing.
    """
    return [PROMPT + _quoted(a.removeprefix(PROMPT)) if a.startswith(PROMPT) else a for a in arguments]


def _quoted(text: str) -> str:
    if text in ("", "null") or (len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"):
        return text
    # In Hydra's quoted strings a backslash stands for itself unless backslashes lead up to a quote: double those.
    parts = text.split('"')
    escaped = [part + "\\" * (len(part) - len(part.rstrip("\\"))) for part in parts]
    return '"' + '\\"'.join(escaped) + '"'


def with_artifact(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `drafter.from=PATH` replaced by what the artifact at PATH says, as if it had been typed.

    `from` can be no field of a schema, being a word of Python's; and spelled out, the options stand in the run's
    config.yaml and may be overridden by what is typed behind. `artifact=PATH` remains, to compare models later.

    Raises:
        UserError: there is no such artifact, or it is another drafter's than the one asked for.
    """
    out: list[str] = []
    for argument in arguments:
        if not argument.startswith(FROM):
            out.append(argument)
            continue
        path = argument.removeprefix(FROM).strip("\"'")
        found = Artifact.read(Path(path))
        asked = next((a.removeprefix(DRAFTER) for a in arguments if a.startswith(DRAFTER)), None)
        if asked not in (None, found.drafter):
            raise UserError(f"drafter.from={path} is for drafter={found.drafter}, not for drafter={asked}")
        if asked is None:
            out.append(f"{DRAFTER}{found.drafter}")
        out += [f"drafter.{name}={json.dumps(value)}" for name, value in found.options.items()]
        out.append(f"artifact={_quoted(path)}")
    return out
