"""Checkpoints of a training: when they are written, and how they are read as data, without running code in them.

A checkpoint names no other file: which weights are the best follows from its history, so a folder can be copied or
moved and the training resumed there. It is read in two steps: `read_checkpoint` checks the file's checksums and loads
only numbers, text and tensors; `fitted` compares them with what this training would have written.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.models.families.parts import attribute
from selfdraft.tracking.files.atomic import write_bytes_atomic

CHECKPOINTS, BEST, LAST = "checkpoints", "best.ckpt", "last.ckpt"
VERSION = "pytorch-lightning_version"
TYPES = {  # of the parts that Lightning and `FinetuneModule` write, by key; all other keys of a file are dropped
    "epoch": int,
    "global_step": int,
    VERSION: str,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "history": list,
}


class Checkpoints(Checkpoint):
    """Writes last.ckpt after every validation, and best.ckpt if no earlier validation was as good."""

    def __init__(self, folder: Path, watched: str) -> None:
        """Write into `folder`; the best validation has the highest value of `watched` in the history."""
        self.folder, self.watched = folder, watched

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the checkpoints."""
        history = attribute(pl_module, "history", list)
        if trainer.sanity_checking or not history:
            return
        if validations_since_best(history, self.watched) == 0:
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)


class Patience(pl.Callback):
    """Stops a training after `patience` validations without a better one.

    If a training that it stopped is resumed, it stops again at once.
    """

    def __init__(self, watched: str, patience: int) -> None:
        self.watched, self.patience = watched, patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the history that was restored."""
        self.on_validation_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the history after a validation."""
        history = attribute(pl_module, "history", list)
        if history and validations_since_best(history, self.watched) >= self.patience:
            trainer.should_stop = True


def validations_since_best(history: list[dict[str, Any]], watched: str) -> int:
    """Return how many lines of a non-empty history come after the first one with the highest value."""
    values = [line[watched] for line in history]
    return len(values) - 1 - values.index(max(values))


class DataOnly(CheckpointIO):
    """Makes Lightning write checkpoints whole or not at all, and read them as data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace the file in one step. Raises OSError if the disk does not take it; the old file then stays."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Serialised in memory first: torch's exception on a full disk does not say that the disk is full.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_bytes_atomic(path, content.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the checkpoint; see `read_checkpoint`."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Raise: checkpoints are replaced, never removed."""
        raise NotImplementedError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the parts of a checkpoint that this program writes, tensors on the CPU.

    Raises:
        UserError: it cannot be read, is damaged, or holds more than numbers, text and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not verify the checksums
            if (torn := archive.testzip()) is not None:
                raise _damaged(path, f"its part {torn} is not what was written")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise _damaged(path, "it holds more than numbers and text, and that is not loaded: it could run code") from None
    except OSError as error:
        raise _damaged(path, error.strerror or type(error).__name__) from None
    except Exception as error:  # damaged bytes can raise almost anything in the readers
        raise _damaged(path, f"{type(error).__name__} while it was read") from None
    if not isinstance(found, dict):
        raise _damaged(path, "it is no checkpoint of task=finetune")
    for key, kind in TYPES.items():
        if not isinstance(found.get(key), kind):
            raise _damaged(path, f"its {key} is missing" if key not in found else f"its {key} is no {kind.__name__}")
    if found[VERSION].partition(".")[0] != pl.__version__.partition(".")[0]:
        raise _damaged(path, f"it was not written by Lightning {pl.__version__}")
    return {**{key: found[key] for key in TYPES}, VERSION: pl.__version__}


def fitted(checkpoint: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the parts of `checkpoint` that `expected` has, after comparing their types and shapes.

    Args:
        checkpoint: the parts that were read.
        expected: parts with the keys, lengths, types and shapes that this training writes; values do not matter.
        path: the file, for messages.

    Raises:
        UserError: a part is missing, or of another type or shape.
    """
    return {key: _like(expected[key], checkpoint[key], key, path) for key in expected}


def _like(expected: Any, value: Any, name: str, path: Path) -> Any:
    """Return `value`, checked to have the types and shapes of `expected`; plain numbers are finite and not negative."""
    if isinstance(expected, Tensor):
        fits = isinstance(value, Tensor) and value.shape == expected.shape and value.dtype == expected.dtype
    elif isinstance(expected, Mapping):
        fits = isinstance(value, Mapping) and all(key in value for key in expected)
        if fits:
            return {key: _like(expected[key], value[key], f"{name}.{key}", path) for key in expected}
    elif isinstance(expected, list | tuple):
        fits = isinstance(value, list | tuple) and len(value) == len(expected)
        if fits:
            pairs = zip(expected, value, strict=True)
            return type(expected)(_like(old, new, f"{name}.{at}", path) for at, (old, new) in enumerate(pairs))
    elif type(expected) in (int, float):
        fits = type(value) in (type(expected), int) and 0 <= value < 2**63
    else:
        fits = type(value) is type(expected)
    if not fits:
        raise _damaged(path, f"its {name} is not what this training writes")
    return value


def _damaged(path: Path, reason: str) -> UserError:
    other = f"copy {BEST}, which lies beside it, over it to go on from there" if path.name == LAST else "put it back"
    return UserError(f"{path} is damaged ({reason}): {other}, or remove {LAST} and {BEST} to begin anew")
