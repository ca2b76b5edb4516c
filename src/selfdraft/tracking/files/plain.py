"""Read untrusted YAML files as plain data, with limits on size and depth, and without looking anything up.

YAML can hold more than values: aliases that grow to gigabytes, tags that make objects, keys that merge. This program
writes none of these, so a file that has them is refused. Values that look like interpolations (`${oc.env:NAME}`) are
text here; callers that pass one on to Hydra have to quote it (see `app.terminal.command_line`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 4_000_000  # a calibration of 10,000 trials writes about 2.5 MB
MAX_VALUES = 500_000
MAX_DEPTH = 32
MAX_INT = 2**63
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotPlain(ValueError):
    """A file cannot be read as plain data. The message is the reason, meant for the end of a longer message."""


def read_plain_yaml(path: Path) -> Any:
    """Return what a YAML file holds: dicts with text as keys, lists, text, numbers, booleans and None.

    Raises:
        NotPlain: it cannot be opened, is not YAML, is too large or too deep, or holds more than plain values.
    """
    try:
        if path.exists() and not path.is_file():
            raise NotPlain("it is a folder or a device")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotPlain(error.strerror or type(error).__name__) from None
    if len(raw) > MAX_BYTES:
        raise NotPlain(f"it has more than {MAX_BYTES // 1_000_000} MB")
    try:
        text = raw.decode("utf-8")
        _refuse_more_than_values(text)
        return _plain(yaml.load(text, LOADER))
    except UnicodeDecodeError:
        raise NotPlain("it is no UTF-8") from None
    except NotPlain:
        raise
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise NotPlain(f"it is no YAML{where}") from None
    except (yaml.YAMLError, ValueError, OverflowError):  # the last two: numbers, and dates such as 2026-99-99
        raise NotPlain("it is no YAML") from None


def _refuse_more_than_values(text: str) -> None:
    """Check the parser's events before any object is built; they come one by one, however deep the file is."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, LOADER)):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise NotPlain(f"line {line} has an anchor or an alias; write values out")
        if getattr(event, "tag", None) is not None:
            raise NotPlain(f"line {line} has a tag; write plain values")
        if count > MAX_VALUES:
            raise NotPlain(f"it has more than {MAX_VALUES:,} values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise NotPlain(f"line {line} is more than {MAX_DEPTH} levels deep")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise NotPlain(f"its key {odd[0]!r} is no text")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise NotPlain("it holds a number of more than 64 bits")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise NotPlain(f"it holds a {type(value).__name__}; write texts in quotes")
