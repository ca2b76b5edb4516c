"""Find the trained draft weights that come with SelfDraft for a model, and how to draft with them.

A folder of `selfdraft/shipped/` is named by the path that the weights are for. It has the weights in 8 bits
(`adapter.safetensors`) and `about.json`: the fingerprint of the model, the drafter's options, and how the weights were
made. `scripts/ship_weights.py` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.loading.fingerprint import fingerprint

FOLDER = Path(__file__).parents[2] / "shipped"
ABOUT = "about.json"


@dataclass(frozen=True)
class Shipped:
    """Weights that come with SelfDraft.

    Attributes:
        folder: the adapter's folder. fingerprint, model: those of the model that the weights were trained for.
        options: the drafter's options that they were trained for, without the adapter.
        made: recipe, data, seeds, command and the acceptance on held-out texts.
    """

    folder: Path
    fingerprint: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(path: str, folder: Path = FOLDER) -> Shipped | None:
        """Return the weights for a path; None if none come with SelfDraft."""
        place = folder / path
        if not (place / ABOUT).is_file():
            return None
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        return Shipped(place, about["fingerprint"], about["model"], about["options"], about["made"])

    def fits(self, target: TargetProtocol) -> bool:
        """Return whether these weights were trained for this model."""
        try:
            model = layered(target).model
        except TypeError:  # a target without layers of its own, as in tests
            return False
        return fingerprint(model) == self.fingerprint

    @property
    def line(self) -> str:
        """A line that says which weights are used."""
        accepted = self.made.get("first_token_acceptance")
        how = "" if accepted is None else f": {accepted:.2f} of first tokens accepted on held-out prompts"
        return f"drafts with the weights that come with SelfDraft, trained for {self.model}{how}"
