"""Keep the drafter that was found best for a model on this machine, in a file, for `drafter=auto`.

There is one file for each model on each machine: `advice/<digest>.json` in the cache folder, beside `costs`. A file
that cannot be read, or that holds anything else, counts as absent; a place that cannot be written keeps nothing.
Delete the folder to have everything measured anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import MalformedJSON, parse_json
from selfdraft.core.messages import printable
from selfdraft.drafters.specs import spec_of
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import StockModel
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.cost_cache import MAX_BYTES, KeyedFile, machine_key

FOLDER = "advice"
REVISION = 1  # raise it when drafters become faster or slower: what was found before is then measured anew
NUMBERS = ("speedup", "low", "high")


@dataclass(frozen=True)
class Advice:
    """The best known drafter.

    Attributes:
        drafter: in one line, as `drafters.specs.spec_of` reads it; `none` if no drafter was clearly faster.
        best: the fastest drafter that was confirmed, in one line; the same unless it is not clearly faster.
        speedup, low, high: of `best` over plain decoding, with the bounds of its 95 % interval.
        date: as 2026-11-29. by: the task that measured it. prompts: number of prompts that it decoded.
    """

    drafter: str
    best: str
    speedup: float
    low: float
    high: float
    date: str
    by: str
    prompts: int

    def __str__(self) -> str:
        """Return what it is, and why, in one line."""
        numbers = f"{self.speedup:.2f} × [{self.low:.2f}, {self.high:.2f}]"
        when = f"on {self.prompts} prompts on {self.date} by {self.by}"
        if self.drafter == self.best:
            return f"{self.drafter}, {numbers} {when}"
        return f"{self.drafter}: no clear gain; the best, {self.best}, had {numbers} {when}"


def key_of_model(model: StockModel, options: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return what the best drafter depends on: the model's weights, how it is run, the machine and versions.

    Args:
        options: those of the model that say how it is run: dtype, engine, weights, packed, attention.
        device: where it runs.
    """
    return {"revision": REVISION, "fingerprint": fingerprint(model), **options, **machine_key(device)}


class AdviceCache(KeyedFile):
    """The advice that is kept for one model on this machine."""

    folder = FOLDER

    def read(self) -> Advice | None:
        """Return what is kept; None if there is nothing that can be used."""
        if self.path is None:
            return None
        try:
            with self.path.open("rb") as file:
                found = parse_json(file.read(MAX_BYTES).decode("utf-8"))
            return _checked(found["advice"]) if found["key"] == self.key else None
        except (OSError, MalformedJSON, ValueError, TypeError, KeyError, AttributeError, OverflowError, UserError):
            return None

    def write(self, advice: Advice) -> bool:
        """Keep an advice in the place of an earlier one; return whether that was possible."""
        if self.path is None:
            return False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self.path, {"key": self.key, "advice": asdict(advice)})
        except (OSError, ValueError):  # ValueError: a path that no file system accepts
            return False
        return True


def _checked(plain: Mapping[str, Any]) -> Advice:
    """Return the advice of a file.

    Raises:
        ValueError, TypeError, UserError: it is none, or it names a drafter that does not exist.
    """
    for field in fields(Advice):
        value = plain[field.name]
        if field.name in NUMBERS:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{field.name} is a number")
        elif field.name == "prompts":
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError("prompts is a whole number")
        elif not isinstance(value, str) or value != printable(value):
            raise ValueError(f"{field.name} is a text")
    advice = Advice(**plain)
    spec_of(advice.drafter)
    return advice
