"""Parse JSON from users; every fault raises the same kind of error, with a reason that fits on one line."""

from __future__ import annotations

import json
from typing import Any


class MalformedJSON(ValueError):
    """A text cannot be read as JSON. The message is the reason, with line and column if they are known."""


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        MalformedJSON: it is not JSON, is nested too deeply for the parser, or has a number of too many digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise MalformedJSON(f"{error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise MalformedJSON("nested too deeply") from None
    except ValueError:  # Python converts no integer of more than 4,300 digits, because that takes quadratic time
        raise MalformedJSON("a number has too many digits") from None


def lone_surrogate(text: str) -> str | None:
    r"""Return the first unpaired half of a character, as an escape such as \ud83d; None if there is none.

    JSON and undecodable bytes of a command line can put such halves into a string. UTF-8 cannot hold them, so the
    string could neither be tokenized nor written to a file.
    """
    return next((f"\\u{ord(letter):04x}" for letter in text if "\ud800" <= letter <= "\udfff"), None)
