"""Options of the configuration: each is declared once, with its default, range and description.

They are checked whenever an object is made, from YAML, the command line or Python alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from selfdraft.core.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self  # in `typing` from Python 3.11 on


CHOICE_NAME = "name of this choice in results; no need to set it"


def option(
    default: Any = ...,
    *,
    help: str,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | Sequence[int] | None = None,
) -> Any:
    """Return a dataclass field with a range. Lists are copied for every object, and the range is for their items.

    Args:
        help: what the option does, in one sentence or phrase, with its unit and what null and each choice mean. It is
            the comment in YAML files and the text of `python run.py --help` (see `app.options.option_help`).
    """
    metadata = {"help": help, "at_least": at_least, "at_most": at_most, "below": below, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def choice_name(default: str, *, choices: Sequence[str] | None = None) -> Any:
    """Return the field `name` of a config class: it says which choice of its group an object is."""
    return option(default, help=CHOICE_NAME, choices=choices)


def redefault(base: type[Options], name: str, default: Any) -> Any:
    """Return a base class's option with another default, and the same range and description."""
    return option(default, **base.__dataclass_fields__[name].metadata)


@dataclass
class Options:
    """Base of all config objects: checks every option's range when it is made.

    Attributes:
        config_group: the config group that the object belongs to, for messages.
    """

    config_group: ClassVar[str] = ""

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Return the object that a file's unchecked values describe.

        Raises:
            UserError: an option does not exist, or a value has another type or is out of range.
        """
        types = get_type_hints(cls)
        hints = {f.name: types[f.name] for f in fields(cls)}
        for name, value in values.items():
            if name not in hints:
                raise UserError(f"{cls._label(name)}: no such option; there are {', '.join(hints)}")
            if not _is_of(value, hints[name]):
                raise UserError(f"{cls._label(name)}={value!r:.60}: must be {_in_words(hints[name])}")
        return cls(**values)

    @classmethod
    def _label(cls, name: str) -> str:
        return f"{cls.config_group}.{name}" if cls.config_group else name

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            for item in value if isinstance(value, list | tuple) else [value]:
                self._check(f.name, item, **{k: v for k, v in f.metadata.items() if k != "help" and v is not None})

    def _check(
        self,
        name: str,
        value: Any,
        at_least: float | None = None,
        at_most: float | None = None,
        below: float | None = None,
        choices: Sequence[str] | Sequence[int] | None = None,
    ) -> None:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{self._label(name)}: must be an integer of at most 64 bits")
        given = f"{self._label(name)}={value}"
        if value is None:
            return  # optional, and not given
        if choices is not None and value not in choices:
            raise UserError(f"{given}: choose one of {', '.join(map(str, choices))}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{given}: must be finite")
        # Written so that NaN, with which every comparison is false, is in no range.
        if at_least is not None and not value >= at_least:
            raise UserError(f"{given}: must be at least {at_least}")
        if at_most is not None and not value <= at_most:
            raise UserError(f"{given}: must be at most {at_most}")
        if below is not None and not value < below:
            raise UserError(f"{given}: must be below {below}")


def helps_of(config: type[Options]) -> dict[str, str]:
    """Return the descriptions of a config class's options, by name. Nested groups have none."""
    return {f.name: f.metadata["help"] for f in fields(config) if f.metadata.get("help")}


def _is_of(value: Any, hint: Any) -> bool:
    """Return whether a value from a file has a field's type. An int is accepted as a float, a bool only as a bool."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, one) for one in arguments)
    if origin is list:
        return isinstance(value, list) and all(_is_of(item, arguments[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_in_words(one) for one in arguments)
    if origin is list:
        return f"a list, each item {_in_words(arguments[0])}"
    return words.get(hint, str(hint))
