"""Copy modules without their weights, to change the copy and leave the user's model as it is.

A sparse path, a packed matrix or another attention function must not change the model that the user loaded: several
paths exist in one process, and the stock model stays the reference. So we copy the *objects* of a layer (a few hundred
bytes) and replace children in the copy. The weights are shared.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from selfdraft.models.families.dispatch import is_placed, place_alike

Swap = Callable[[str, nn.Module], nn.Module | None]
_Module = TypeVar("_Module", bound=nn.Module)


def light_copy(module: nn.Module, swap: Swap, name: str = "") -> nn.Module:
    """Return a copy of `module` that shares its parameters, with those descendants replaced for which `swap` says so.

    Args:
        swap: called with each module's dotted name and the module. It returns the replacement, or None to keep the
            module and go on with its children.
    """
    replacement = swap(name, module)
    if replacement is not None:
        return replacement
    new = copy_of(module)
    new._modules = {
        child_name: None if child is None else light_copy(child, swap, f"{name}.{child_name}" if name else child_name)
        for child_name, child in module._modules.items()
    }
    for attribute, value in module.__dict__.items():
        if attribute.endswith("_hooks"):  # copies present hooks; later ones stay where they are added
            new.__dict__[attribute] = value.copy()
    return new


def with_parts(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of `module` in which `parts` replace the descendants of these dotted names; others are shared."""

    def swap(name: str, stock: nn.Module) -> nn.Module | None:
        if name in parts:
            return parts[name]
        return None if name == "" or any(part.startswith(f"{name}.") for part in parts) else stock

    return light_copy(module, swap)


def copy_of(module: _Module) -> _Module:
    """Return a copy of one module object with the same children; change its `_modules` to change them."""
    new = copy.copy(module)
    if is_placed(module):
        place_alike(new)
    return new


class SkippedAttention(nn.Module):
    """Replaces an attention sublayer that is skipped: adds nothing to the residual stream, and uses no cache.

    Attributes:
        returned: how many things the sublayer returns; 0: a tensor by itself.
        residual: which of its inputs is the residual stream that it adds itself to, if it does that; else None.
        keys_of: the sublayer, if later layers read its keys, which are then computed nevertheless; otherwise None.
    """

    def __init__(self, returned: int = 2, residual: int | None = None, keys_of: nn.Module | None = None) -> None:
        super().__init__()
        self.returned, self.residual, self.keys_of = returned, residual, keys_of

    @classmethod
    def of(cls, stock: nn.Module, returned: int) -> SkippedAttention:
        """Return what replaces a sublayer."""
        names = list(inspect.signature(stock.forward).parameters)
        stores = bool(getattr(stock, "store_full_length_kv", False))
        return cls(returned, names.index("residual") if "residual" in names else None, stock if stores else None)

    def forward(self, *given: Any, **named: Any) -> Any:
        """Return zeros of the same shape, (B, N, C); post-norms of zero are zero, so every family bypasses."""
        if self.keys_of is not None:
            self.keys_of(*given, **named)
        hidden = given[0] if given else named["hidden_states"]
        if self.residual is None:
            nothing = torch.zeros_like(hidden)
        else:
            nothing = named["residual"] if "residual" in named else given[self.residual]
        return (nothing, *[None] * (self.returned - 1)) if self.returned else nothing


class SkippedMLP(SkippedAttention):
    """Replaces an MLP sublayer: adds nothing to the residual stream."""

    def __init__(self, returned: int = 0, residual: int | None = None, keys_of: nn.Module | None = None) -> None:
        super().__init__(returned, residual, keys_of)
