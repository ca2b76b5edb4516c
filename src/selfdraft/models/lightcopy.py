"""Light copies of stock modules: new module objects around the same weights.

A sparse path, a packed matrix or another attention function must not change the model that the user loaded: several
paths exist in one process, and the stock model stays the reference. So instead of patching, we copy the *objects* of a
layer (a few hundred bytes) and swap children in the copy; parameters are shared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Swap = Callable[[str, nn.Module], nn.Module | None]


def light_copy(module: nn.Module, swap: Swap, name: str = "") -> nn.Module:
    """Return a copy of `module` that shares its parameters, with those descendants replaced for which `swap` says so.

    Args:
        swap: called with each module's dotted name and the module. It returns the replacement, or None to keep the
            module and go on with its children.
    """
    replacement = swap(name, module)
    if replacement is not None:
        return replacement
    new = copy.copy(module)
    new._modules = {
        child_name: None if child is None else light_copy(child, swap, f"{name}.{child_name}" if name else child_name)
        for child_name, child in module._modules.items()
    }
    for attribute, value in module.__dict__.items():
        if attribute.endswith("_hooks"):  # copies present hooks; later ones stay where they are added
            new.__dict__[attribute] = value.copy()
    return new


class SkippedAttention(nn.Module):
    """Replaces an attention sublayer: adds nothing to the residual stream, reads and writes no cache."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        """Return zeros of the same shape, (B, N, C); post-norms of zero are zero, so every family bypasses."""
        return torch.zeros_like(hidden_states), None


class SkippedMLP(nn.Module):
    """Replaces an MLP sublayer: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return zeros of the same shape, (B, N, C)."""
        return torch.zeros_like(hidden_states)
