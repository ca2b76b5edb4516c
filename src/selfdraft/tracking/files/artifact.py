"""drafter.yaml: the result of a calibration or a fine-tuning. Any run takes it with `drafter.from=PATH`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from selfdraft.core.errors import UserError
from selfdraft.core.paths import file_at
from selfdraft.drafters.presets import PRESETS, configured
from selfdraft.tracking.files.atomic import write_text_atomic
from selfdraft.tracking.files.plain import NotPlain, read_plain_yaml

FILE = "drafter.yaml"
ADAPTER = "adapter"  # the option that names a folder of weights; in the file, relative to the file's folder
MODEL = ("label", "dtype", "fingerprint")


@dataclass(frozen=True)
class Artifact:
    """A drafter's options, and how they were found.

    Attributes:
        drafter: name of the drafter.
        options: its chosen options and those of its path, by name, as `configured` takes them.
        model: label, dtype and `fingerprint` of the model that they are for.
        objective: name, method, value, and the predicted and measured results.
        history: every candidate tried, in order: value, skip set, length and threshold.
    """

    drafter: str
    options: Mapping[str, Any]
    model: Mapping[str, Any]
    objective: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    def write(self, path: Path) -> None:
        """Write the artifact as YAML, each list on one line."""
        write_text_atomic(path, yaml.safe_dump(asdict(self), sort_keys=False, default_flow_style=None, width=120))

    @staticmethod
    def read(path: Path, option: str = "drafter.from") -> Artifact:
        """Read an artifact as plain data: nothing in the file is looked up or run.

        Args:
            path: of the file, or of the folder of the task that wrote it.
            option: the option that named it, for messages.

        Returns:
            The artifact, with every option checked, and `adapter` joined to the folder of the file.

        Raises:
            UserError: there is no file, or these tasks did not write it.
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
        """Refuse a model other than this artifact's, for which its options have no meaning.

        Args:
            name: this artifact, as the user gave it.
            label, fingerprint: of the model.

        Raises:
            UserError: it is another model.
        """
        if self.model["fingerprint"] != fingerprint:
            raise UserError(
                f"{name} was made for {self.model['label']} ({self.model['fingerprint']}), but this "
                f"model is {label} ({fingerprint}): make one for it with task=calibrate or task=finetune"
            )


def _checked(plain: Any) -> Artifact:
    """Return the artifact that a file's values describe.

    Raises:
        NotPlain: they describe none.
        UserError: an option of the drafter is wrong.
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
    if drafter not in PRESETS:
        raise NotPlain(f"there is no drafter {drafter!r:.60}")
    if "name" in options:
        raise NotPlain("its options hold a name, and drafter is one already")
    configured(drafter, **options)
    adapter = Path(options.get(ADAPTER) or ".")
    if adapter.is_absolute() or ".." in adapter.parts:
        raise NotPlain(f"its adapter {str(adapter)!r:.60} does not lie beside it")
    return Artifact(**plain)
