"""drafter.yaml: what a calibration found or a fine-tuning made. Any run takes it with `drafter.from=PATH`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from selfdraft.core.errors import UserError
from selfdraft.core.paths import file_at
from selfdraft.drafters import DRAFTERS
from selfdraft.tracking.atomic import write_text_atomic
from selfdraft.tracking.plain import NotPlain, read_plain_yaml

FILE = "drafter.yaml"
ADAPTER = "adapter"  # the option that names a folder of weights; in the file, relative to the file's own
MODEL = ("label", "dtype", "fingerprint")


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
        """Take a file, or the folder of the task that wrote one, as plain data: nothing in it is looked up or run.

        Args:
            path: of either. option: that named it, for messages.

        Returns:
            What it says, every option checked; `adapter` as a path from here.

        Raises:
            UserError: there is none, or it is not what these tasks write.
        """
        path = file_at(path, FILE)
        try:
            found = _checked(read_plain_yaml(path))
        except NotPlain as error:
            raise UserError(
                f"{option}={path}: {error}; give the {FILE} that task=calibrate or task=finetune wrote"
            ) from None
        except UserError as error:
            raise UserError(f"{option}={path}: {error}") from None
        if found.options.get(ADAPTER) is None:
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


def _checked(plain: Any) -> Artifact:
    """The artifact that a file's values are.

    Raises:
        NotPlain: they are none. UserError: an option of the drafter's is wrong.
    """
    names = [f.name for f in fields(Artifact)]
    if not isinstance(plain, dict) or sorted(plain) != sorted(names):
        raise NotPlain(f"it does not hold {', '.join(names)}")
    for name, kind in (("drafter", str), ("options", dict), ("model", dict), ("objective", dict), ("history", list)):
        if not isinstance(plain[name], kind):
            raise NotPlain(f"its {name} is no {'text' if kind is str else kind.__name__}")
    if not all(isinstance(line, dict) for line in plain["history"]):
        raise NotPlain("its history is no list of trials")
    if sorted(plain["model"]) != sorted(MODEL) or not all(isinstance(text, str) for text in plain["model"].values()):
        raise NotPlain(f"its model does not hold the texts {', '.join(MODEL)}")
    drafter, options = plain["drafter"], plain["options"]
    if drafter not in DRAFTERS:
        raise NotPlain(f"there is no drafter {drafter!r:.60}")
    if "name" in options:
        raise NotPlain("its options hold a name, and drafter is one already")
    DRAFTERS[drafter].Config.from_plain(options)
    adapter = Path(options.get(ADAPTER) or ".")
    if adapter.is_absolute() or ".." in adapter.parts:
        raise NotPlain(f"its adapter {str(adapter)!r:.60} does not lie beside it")
    return Artifact(**plain)
