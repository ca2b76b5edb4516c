"""Read result.json of finished evaluations, and print Markdown tables of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from selfdraft.core.errors import UserError

T = TypeVar("T")


def taken_from(folder: Path, take: Callable[[dict[str, Any]], T]) -> T:
    """Return what `take` makes of the result of the run in `folder`.

    Raises:
        UserError: the folder has no result of these tasks: there is no file, or `take` misses something in it.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise UserError(f"{path} is not there: give the folders of finished runs (hydra.run.dir)")
    try:
        return take(json.loads(path.read_text(encoding="utf-8")))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise UserError(
            f"{path} is no result of task=evaluate or task=compare: give the folders of finished runs"
        ) from None


def markdown(header: str, rows: Iterable[str]) -> str:
    """Return a Markdown table; `header` and rows are lines that begin and end with a bar."""
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *rows])
