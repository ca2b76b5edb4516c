"""The composed configuration as objects, whose values are checked."""

from __future__ import annotations

from dataclasses import MISSING as DATACLASS_MISSING
from dataclasses import fields
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from selfdraft.app.terminal.suggestions import unknown_option
from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, helps_of


def to_config(composed: DictConfig) -> Any:
    """Return the dataclasses of a composed configuration, with every range checked: those that are registered.

    In a run that is a `schemas.Config`.

    Raises:
        UserError: an option is out of its range, or a required option is missing.
    """
    if missing := sorted(OmegaConf.missing_keys(composed) - {"prompt"}):
        raise UserError(f"{missing[0]} is needed: give it as {missing[0]}=<value>{_described(composed, missing[0])}")
    config: Any = OmegaConf.to_object(OmegaConf.merge(composed, {"prompt": None}))
    # A prompt is text and may be ???, which OmegaConf would take for a missing value.
    config.prompt = MISSING if OmegaConf.is_missing(composed, "prompt") else composed.prompt
    _refuse_unknown(composed, config, "")
    groups: list[Any] = [config.task, config.model, config.drafter, config.dataset, config.finetune]
    if hasattr(config.drafter, "path"):
        groups.append(config.drafter.path)
    for group in groups:
        own = type(group)().name  # `name` identifies the choice; the user must not change it
        if own != MISSING and group.name != own:
            choice = group.config_group.replace(".", "/")
            raise UserError(f"{group.config_group}.name={group.name}: choose another one with {choice}={group.name}")
    return config


def defaults_of(options: Options) -> dict[str, Any]:
    """Return the default of every option that has one, by name, with those of the parts in dicts of their own."""
    found: dict[str, Any] = {}
    for each in fields(options):
        value = getattr(options, each.name)
        if isinstance(value, Options):
            found[each.name] = defaults_of(value)
        elif each.default is not DATACLASS_MISSING:
            found[each.name] = each.default
        elif each.default_factory is not DATACLASS_MISSING:
            found[each.name] = each.default_factory()
    return found


def _described(composed: DictConfig, key: str) -> str:
    """Return the description of an option after a comma, or nothing if it has none."""
    group, _, option = key.rpartition(".")
    schema = OmegaConf.get_type(OmegaConf.select(composed, group) if group else composed)
    described = helps_of(schema).get(option) if schema is not None and issubclass(schema, Options) else None
    return f", {described}" if described else ""


def _refuse_unknown(composed: DictConfig, options: Options, prefix: str) -> None:
    """Refuse keys that no schema has: `+key=value` adds them, nothing reads them, and a typo would go unnoticed."""
    known = {f.name for f in fields(options)}
    for key in map(str, composed):
        if key not in known:
            raise UserError(unknown_option(f"{prefix}{key}", sorted(known - {"name", "defaults"})))
        if isinstance(value := getattr(options, key), Options):
            _refuse_unknown(composed[key], value, f"{prefix}{key}.")
