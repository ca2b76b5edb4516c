"""Find what users added to modules: hooks, and a `forward` method on one object that replaces its class's.

Fusing or packing replaces a module by another one, which would not call them. So modules that have them stay as they
are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.nn.modules import module as global_registry

_CAPTURING = "transformers.utils.output_capturing"  # its hooks stay on a model for ever, and only record outputs
_GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether calling this object calls hooks, before its `forward` or after it."""
    return next(_hooks(module), None) is not None


def called_otherwise(module: nn.Module) -> bool:
    """Whether a call of the module, or of any part of it, does anything but the `forward` of its class."""
    return any("forward" in part.__dict__ or has_hooks(part) for part in module.modules())


def has_global_hooks() -> bool:
    """Whether torch calls hooks for every module of the process."""
    return any(getattr(global_registry, name) for name in _GLOBAL)


def per_call_arguments(module: nn.Module) -> str | None:
    """Return the name of an argument that PEFT gives this module for one call, such as an adapter per row, or None."""
    for hook in _hooks(module):
        if isinstance(hook, partial) and str(getattr(hook.func, "__module__", "")).startswith("peft."):
            return next(iter(hook.keywords), "hooks")
    return None


def _hooks(module: nn.Module) -> Iterator[object]:
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if getattr(hook, "__module__", None) != _CAPTURING:
            yield hook
