"""What is done to the command line before Hydra reads it."""

from __future__ import annotations

from collections.abc import Sequence

PROMPT = "prompt="


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
