"""Draft-only weights: what fine-tuning adds to a model, kept beside it. The model itself is never written to.

An adapter is a folder: `adapter.safetensors`, and the `drafter.yaml` that says how to draft with it. Its tensors:

* ``lora.{layer}.{module}.A`` (r, in) and ``….B`` (out, r): added to that layer's matrix, times ``settings["scale"]``;
* ``layer.{layer}.{parameter}``: in the place of that layer's own;
* ``norm.{parameter}``: in the place of the final norm's;
* ``feature.weight`` (C, C): makes of the last committed token's final hidden state what is added behind the exit;
* ``vocabulary`` (v,): the only ids that drafts say;
* ``pseudo`` (k, C): embeddings of learned pseudo tokens; ``sampler.{parameter}``: see `pseudo`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from selfdraft.core.errors import UserError

FILE = "adapter.safetensors"
FEATURE = "feature.weight"


@dataclass(frozen=True)
class Adapter:
    """Trained weights by name, and what is needed to put them in place.

    Attributes:
        recipe: that trained them.
        settings: of the recipe, such as the scale of its LoRA; plain values only.
        tensors: see the module.
    """

    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def write(self, folder: Path) -> None:
        """Into a folder, which is made; what half a file would be is never seen under the file's name."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in self.tensors.items()}
        partial = folder / f".{FILE}.partial"
        save_file(plain, partial, metadata={"recipe": self.recipe, "settings": json.dumps(dict(self.settings))})
        partial.replace(folder / FILE)

    @staticmethod
    def read(path: str | Path) -> Adapter:
        """Take the folder of an adapter, or its file.

        Raises:
            UserError: there is none, or it is none of ours.
        """
        file = Path(path).expanduser()
        file = file / FILE if file.is_dir() else file
        try:
            with safe_open(file, framework="pt") as opened:
                said = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            return Adapter(said["recipe"], json.loads(said["settings"]), tensors)
        except (OSError, SafetensorError) as error:
            reason = "there is no such file" if not file.exists() else str(error).splitlines()[0]
            raise UserError(f"drafter.adapter={path}: {reason}; give the folder that task=finetune wrote") from None
        except (KeyError, json.JSONDecodeError):
            raise UserError(f"drafter.adapter={path} was not written by task=finetune") from None
