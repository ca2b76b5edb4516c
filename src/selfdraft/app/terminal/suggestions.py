"""Suggest what was meant by an option or a choice that does not exist.

Everything is looked up in the registered schemas of the options, which are known before anything slow is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

MOST = 4  # suggestions that are still of use; an option that more choices have says nothing


def near(word: str, known: Sequence[str]) -> str:
    """Return " (did you mean …?)" with the known word that is spelt most alike; nothing if none is alike."""
    alike = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {alike[0]}?)" if alike else ""


def unknown_option(key: str, known: Sequence[str]) -> str:
    """Return the message about an option that does not exist.

    Args:
        key: the option as it was typed, with its group: `drafter.windw`.
        known: names of the options that there are in its place.
    """
    group, _, option = key.rpartition(".")
    hint = near(option, known)
    if not group and (groups := sorted(groups_with(option))) and len(groups) <= MOST:
        hint = f" (did you mean {' or '.join(f'{each}.{option}' for each in groups)}?)"
    elif choices := choices_with(group, option):  # spelt right, so no other spelling is meant
        slashed = group.replace(".", "/")
        spelt = ", ".join(f"{slashed}={choice}" for choice in choices)
        owners = spelt if len(choices) <= MOST else f"other choices of {slashed}"
        hint = f" here; {owners} {'have' if len(choices) > 1 else 'has'} it"
    there = f"; there are {', '.join(known)}" if known else ""
    return f"{key}: no such option{hint}{there}"


def choices_with(group: str, option: str) -> list[str]:
    """Return the names of the choices of a group, such as `drafter.path`, that have an option."""
    found = (_default_name(schema) for schema in _schemas(group) if option in _options(schema))
    return list(dict.fromkeys(name for name in found if name != MISSING))


def groups_with(option: str) -> set[str]:
    """Return the groups, such as `drafter.path`, of which at least one choice has an option."""
    return {group for group in _groups() if any(option in _options(schema) for schema in _schemas(group))}


def _groups() -> Iterator[str]:
    for group, content in ConfigStore.instance().repo.items():
        if isinstance(content, dict):
            yield from (group, *(f"{group}.{part}" for part, below in content.items() if _is_group(part, below)))


def _is_group(name: str, content: object) -> bool:
    return isinstance(content, dict) and name != "schema"


def _schemas(group: str) -> list[type[Any]]:
    content: Any = ConfigStore.instance().repo
    for part in (*group.split("."), "schema"):
        content = content.get(part, {}) if isinstance(content, dict) else {}
    types = (OmegaConf.get_type(each.node) for each in content.values())
    return [each for each in types if each is not None]


def _options(schema: type[Any]) -> set[str]:
    return {f.name for f in fields(schema)} - {"name", "path", "defaults"}


def _default_name(schema: type[Any]) -> str:
    return next((str(f.default) for f in fields(schema) if f.name == "name"), MISSING)
