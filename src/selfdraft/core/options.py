"""Config options with ranges: declared once beside their default, checked wherever a config object is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from selfdraft.core.errors import UserError


def option(
    default: Any = ...,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field with a range. Lists are copied for every object, and their items are what is checked."""
    limits = {"at_least": at_least, "at_most": at_most, "below": below, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=limits)
    return field(default=default, metadata=limits)


@dataclass
class Options:
    """Base of all config objects: checks every option's range when it is made.

    Attributes:
        group: the config group that the object stands in, for messages.
    """

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            for item in value if isinstance(value, list | tuple) else [value]:
                self._check(f.name, item, **{k: v for k, v in f.metadata.items() if v is not None})

    def _check(
        self,
        name: str,
        value: Any,
        at_least: float | None = None,
        at_most: float | None = None,
        below: float | None = None,
        choices: Sequence[str] | None = None,
    ) -> None:
        given = f"{self.group}.{name}={value}" if self.group else f"{name}={value}"
        if value is None:
            return  # optional, and not given
        if choices is not None and value not in choices:
            raise UserError(f"{given}: choose one of {', '.join(choices)}")
        # Written so that NaN, with which every comparison is false, is in no range.
        if at_least is not None and not value >= at_least:
            raise UserError(f"{given}: must be at least {at_least}")
        if at_most is not None and not value <= at_most:
            raise UserError(f"{given}: must be at most {at_most}")
        if below is not None and not value < below:
            raise UserError(f"{given}: must be below {below}")
