"""The path of recipes whose drafts run through the whole model, and are trained from one of its layers on."""

from __future__ import annotations

from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.paths.sparse import sparse_path


def whole_model(target: Target, option: str, first: int) -> Path:
    """Return the path that skips nothing.

    Args:
        option: the recipe's option that names the first trained layer. first: its value.

    Raises:
        UserError: the model has no such layer.
    """
    layers = len(target.full.layers)
    if first >= layers:
        raise UserError(f"finetune.{option}={first}: this model has {layers} layers; give one of 0 to {layers - 1}")
    return sparse_path(target, SkipSet())
