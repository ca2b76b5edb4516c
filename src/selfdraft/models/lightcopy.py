"""Light copies of stock modules: new module objects around the same weights.

A sparse path, a packed matrix or another attention function must not touch the model that the user loaded: two paths
live in one process, and the stock model stays the reference. So instead of patching, we copy the *objects* of a layer
(a few hundred bytes) and swap children in the copy; parameters are shared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Swap = Callable[[str, nn.Module], nn.Module | None]


def light_copy(module: nn.Module, swap: Swap, name: str = "") -> nn.Module:
    """A copy of `module` that shares its parameters, with every descendant replaced for which `swap` gives another.

    Args:
        swap: called with each module's dotted name and the module; None keeps it (and descends).
    """
    other = swap(name, module)
    if other is not None:
        return other
    twin = copy.copy(module)
    twin._modules = {
        child_name: None if child is None else light_copy(child, swap, f"{name}.{child_name}" if name else child_name)
        for child_name, child in module._modules.items()
    }
    for attribute, value in module.__dict__.items():
        if attribute.endswith("_hooks"):  # those there are come along, but what is hooked later stays where it is put
            twin.__dict__[attribute] = value.copy()
    return twin


class SkippedAttention(nn.Module):
    """In the place of an attention sublayer: adds nothing to the residual stream, reads and writes no cache."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        """(B, N, C) in, zeros of the same shape out (post-norms of zero are zero, so every family bypasses)."""
        return torch.zeros_like(hidden_states), None


class SkippedMLP(nn.Module):
    """In the place of an MLP sublayer: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, C) in, zeros of the same shape out."""
        return torch.zeros_like(hidden_states)
