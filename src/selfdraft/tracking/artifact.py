"""drafter.yaml: what a calibration found or a fine-tuning made. Any run takes it with `drafter.from=PATH`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from selfdraft.core.errors import UserError
from selfdraft.tracking.atomic import write_text_atomic

FILE = "drafter.yaml"
ADAPTER = "adapter"  # the option that names a folder of weights; in the file, relative to the file's own


@dataclass(frozen=True)
class Artifact:
    """A drafter's options, and what they were found for.

    Attributes:
        drafter: its name. options: those of its config group that were chosen.
        model: label, dtype and `fingerprint` of the model that they fit.
        objective: name, method, value, and what was predicted and measured.
        history: every candidate tried, in order: value, skip set, length and threshold.
    """

    drafter: str
    options: Mapping[str, Any]
    model: Mapping[str, Any]
    objective: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    def write(self, path: Path) -> None:
        """As YAML, lists in one line each."""
        write_text_atomic(path, yaml.safe_dump(asdict(self), sort_keys=False, default_flow_style=None, width=120))

    @staticmethod
    def read(path: Path, option: str = "drafter.from") -> Artifact:
        """Take a file, or the folder of the task that wrote one. `option`: that named it, for messages.

        Raises:
            UserError: there is none, or it is no artifact.
        """
        path = path.expanduser()
        path = path / FILE if path.is_dir() else path
        try:
            plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or "it is no YAML"
            raise UserError(
                f"{option}={path}: {reason}; give the {FILE} that task=calibrate or task=finetune wrote"
            ) from None
        try:
            found = Artifact(**plain)
        except TypeError:
            raise UserError(f"{option}={path} is no {FILE} of task=calibrate or task=finetune") from None
        if ADAPTER not in found.options:
            return found
        return replace(found, options={**found.options, ADAPTER: str(path.parent / found.options[ADAPTER])})

    def refuse_other_model(self, name: str, label: str, fingerprint: str) -> None:
        """The options of one model mean nothing on another. `name`: of this artifact, as the user gave it.

        Raises:
            UserError: it is another model.
        """
        if self.model["fingerprint"] != fingerprint:
            raise UserError(
                f"{name} was made for {self.model['label']} ({self.model['fingerprint']}), but this "
                f"model is {label} ({fingerprint}): make one for it with task=calibrate or task=finetune"
            )
