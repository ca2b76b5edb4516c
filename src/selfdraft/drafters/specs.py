"""Read drafters written in one line: `pool sources=[suffix]`, `guarded jacobi path=swift context_window=30`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.drafters.base import Drafter, DrafterConfig
from selfdraft.drafters.guard import Guard
from selfdraft.drafters.presets import configured, drafter_for, routed
from selfdraft.models.forward.protocol import TargetProtocol

GUARDED = "guarded"  # before a name: drafts only if that pays


@dataclass(frozen=True)
class Spec:
    """A drafter's options, and whether it is guarded."""

    config: DrafterConfig
    guarded: bool = False

    def drafter(self, target: TargetProtocol, costs: Costs) -> Drafter:
        """Return the drafter.

        Raises:
            UserError: its options do not fit the model.
        """
        drafter = drafter_for(target, self.config, costs)
        return Guard(drafter) if self.guarded else drafter


def spec_of(text: str) -> Spec:
    """Return what ``"[guarded] name option=value … path=name"`` describes.

    The options of the drafter's path are given like its own.

    Raises:
        UserError: there is no such drafter, path or option, or a value cannot be read or is out of its range.
    """
    guarded, name, written = _parts(text)
    given: dict[str, Any] = {}
    for option, value in written.items():
        try:
            read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
            given[option] = read["value"]
        except (YAMLError, OmegaConfBaseException, ValueError):
            raise UserError(f"the value of {option} cannot be read") from None
    path = given.pop("path", None)
    return Spec(configured(name, None if path is None else str(path), **given), guarded)


def as_overrides(text: str) -> list[str]:
    """Return the overrides of `python run.py` that choose the same drafter.

    Raises:
        UserError: as `spec_of`.
    """
    guarded, name, written = _parts(text)
    path = written.pop("path", None)
    owned = routed(name, path, **written)
    return [
        f"drafter={name}",
        *([] if path is None else [f"drafter/path={path}"]),
        *(f"drafter.{option}={value}" for option, value in owned.values.items()),
        *(f"drafter.path.{option}={value}" for option, value in owned.path_values.items()),
        *(["decoding.guard=true"] if guarded else []),
    ]


def _parts(text: str) -> tuple[bool, str, dict[str, str]]:
    """Return whether a drafter is guarded, its name, and its options as they are written."""
    words = text.split()
    guarded = words[:1] == [GUARDED]
    name, *options = words[guarded:] or [""]
    written = {}
    for word in options:
        option, equals, value = word.partition("=")
        if not equals or option in ("", "name"):
            raise UserError(f"write option=value, not {word!r:.60}")
        written[option] = value
    return guarded, name, written
