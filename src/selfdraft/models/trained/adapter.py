"""Weights that were trained for drafting only, kept in files of their own. The model itself is never written to.

`task=finetune` writes an adapter, and drafters read it. It is a folder with `adapter.safetensors`, and a `drafter.yaml`
that says how to draft with it. The tensors in the file:

* ``lora.{layer}.{module}.A`` (r, in) and ``….B`` (out, r): added to that layer's matrix, times ``settings["scale"]``;
* ``layer.{layer}.{parameter}``: replaces that layer's own parameter;
* ``norm.{parameter}``: replaces the final norm's parameter;
* ``feature.weight`` (C, C): maps the last committed token's final hidden state to an addend (see `FeaturePath`);
* ``jump.weight`` (C, C): with ``feature.weight``, predicts the state at which a `JumpPath` begins;
* ``vocabulary`` (v,): the only token ids that are drafted;
* ``pseudo`` (k, C): embeddings of learned pseudo tokens; ``sampler.{parameter}``: see `pseudo`;
* ``scales/{name}`` (O, I / 32): the matrix ``{name}`` is stored in 8 bits (see `eight_bit`), and read as floats;
* ``mask`` (k, C), ``feed.{parameter}``: inputs of gated rows, see `fused`; ``markov.…``, ``confidence.…``: see `heads`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.core.paths import file_at
from selfdraft.models.trained.eight_bit import in_eight_bits, in_floats

FILE = "adapter.safetensors"
FEATURE, JUMP = "feature.weight", "jump.weight"
SKIPPED = ("skip_attention", "skip_mlp")  # settings: the layers whose sublayers drafts bypass
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NAMES = re.compile(
    r"lora\.\d{1,6}\..+\.[AB]|layer\.\d{1,6}\..+|norm\..+|pseudo|(feature|jump)\.weight|mask"
    r"|(sampler|feed|markov|confidence)\..+"
)


@dataclass(frozen=True)
class Adapter:
    """Trained weights by name, and the settings needed to put them in place.

    Attributes:
        recipe: name of the recipe that trained them.
        settings: the recipe's settings, such as the scale of its LoRA; plain values only.
        tensors: by name, as listed at the top of this file.
    """

    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by name without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def write(self, folder: Path, *, eight_bit: bool = False) -> None:
        """Write the adapter into a folder, which is created if needed. The file appears whole or not at all.

        Args:
            eight_bit: round every matrix to 8 bits: a quarter of the size (see `eight_bit`).
        """
        folder.mkdir(parents=True, exist_ok=True)
        stored = in_eight_bits(self.tensors) if eight_bit else self.tensors
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in stored.items()}
        partial = folder / f".{FILE}.partial"
        save_file(plain, partial, metadata={"recipe": self.recipe, "settings": json.dumps(dict(self.settings))})
        partial.replace(folder / FILE)

    @staticmethod
    def read(path: str | Path, option: str = "drafter.adapter") -> Adapter:
        """Read an adapter from its folder or its file. Whether it fits a model is checked when it is put in place.

        Args:
            option: the option that named it, for messages.

        Raises:
            UserError: there is no such file, it is damaged, or task=finetune did not write it.
        """
        file = file_at(path, FILE)
        try:
            return _read(file)
        except _NoAdapter as error:
            raise UserError(f"{option}={path}: {error}; give the folder that task=finetune wrote") from None

    @torch.no_grad()
    def begin_with(self, earlier: Adapter, option: str) -> None:
        """Copy the values of an earlier training into these weights, which are about to be trained.

        Raises:
            UserError: it trained other weights; `option` named it.
        """
        mine, theirs = (
            {
                "recipe": each.recipe,
                **each.settings,
                **{f"shape of {n}": tuple(t.shape) for n, t in each.tensors.items()},
            }
            for each in (self, earlier)
        )
        if wrong := [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]:
            raise UserError(
                f"{option}: it trained other weights: {wrong[0]} is {theirs.get(wrong[0])} there and "
                f"{mine.get(wrong[0])} here; give the options that it was trained with"
            )
        for name, tensor in self.tensors.items():
            tensor.copy_(earlier.tensors[name])

    def refuse_beyond(self, layers: int, vocabulary: int, name: str | None = None) -> None:
        """Refuse an adapter that was trained for a model with more layers or token ids than this one has.

        Args:
            layers: number of layers of the model. vocabulary: number of its token ids.
            name: what the user gave as the adapter, for the message; None leaves it out.

        Raises:
            UserError: the adapter trains or skips a layer that the model lacks, or drafts an id that it lacks.
        """
        theirs = (int(name.split(".")[1]) for name in self.tensors if name.startswith(("lora.", "layer.")))
        skipped = (layer for name in SKIPPED for layer in self.settings.get(name, ()))
        given = "drafter.path.adapter" if name is None else f"drafter.adapter={name}"
        other = f"{given}: it was trained for another model"
        if (last := max([*theirs, *skipped], default=0)) >= layers:
            raise UserError(f"{other}: it trained or skips layer {last}, and this one's layers are 0 to {layers - 1}")
        ids = self.tensors.get("vocabulary")
        if ids is not None and int(ids.max()) >= vocabulary:
            raise UserError(f"{other}: it drafts token {int(ids.max())}, and this one has {vocabulary} tokens")


class _NoAdapter(Exception):
    """A file is no adapter; the message says why."""


def _read(file: Path) -> Adapter:
    try:
        if not file.exists():
            raise _NoAdapter(f"there is no {FILE} there" if file.name == FILE else "there is no such file")
        if not file.is_file():
            raise _NoAdapter(f"it has no {FILE}")
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    except _NoAdapter:
        raise
    except Exception as error:  # a damaged file may make its reader raise anything
        raise _NoAdapter(next(iter(str(error).splitlines()), type(error).__name__)) from None
    try:
        settings = json.loads(said["settings"])
        recipe = said["recipe"]
    except (KeyError, ValueError, RecursionError):
        raise _NoAdapter("it was not written by task=finetune") from None
    if not isinstance(settings, dict):
        raise _NoAdapter("its settings are no settings of a recipe")
    for name, value in settings.items():
        if name in SKIPPED:
            fits = isinstance(value, list) and all(type(layer) is int and 0 <= layer < 10**6 for layer in value)
        else:
            fits = name in ("scale", "first") and type(value) in (int, float) and abs(value) < 2**63
        if not fits:
            raise _NoAdapter(f"its settings have {name!r:.40} as {value!r:.40}")
    try:
        tensors = in_floats(tensors)
    except ValueError as error:
        raise _NoAdapter(str(error)) from None
    for name, tensor in tensors.items():
        if (reason := _wrong(name, tensor, tensors)) is not None:
            raise _NoAdapter(f"its tensor {name!r:.80} {reason}")
    return Adapter(recipe, {"scale": 1.0, "first": 0, **{name: [] for name in SKIPPED}, **settings}, tensors)


def _wrong(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with a tensor, or None."""
    if name == "vocabulary":
        fits = (
            tensor.dtype in (torch.int32, torch.int64) and tensor.dim() == 1 and len(tensor) and int(tensor.min()) >= 0
        )
        return None if fits else "is no list of token ids"
    if not NAMES.fullmatch(name):
        return "is none that a recipe trains"
    if tensor.dtype not in FLOATS or not torch.isfinite(tensor).all():
        return "holds something else than finite numbers"
    if name in ("pseudo", "mask", FEATURE, JUMP) and (tensor.dim() != 2 or not tensor.numel()):
        return "is no matrix"
    if name == JUMP and FEATURE not in tensors:
        return f"needs {FEATURE} beside it"
    if name.startswith("lora."):
        stem = name.rpartition(".")[0]
        a, b = tensors.get(f"{stem}.A"), tensors.get(f"{stem}.B")
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            return "is no half of a LoRA"
    return None
