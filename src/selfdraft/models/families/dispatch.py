"""Support models that accelerate's `device_map` has placed: layers on several devices, or partly on a disk.

accelerate replaces `forward` of the modules that it places. The new one fetches the weights, if they are elsewhere, and
moves the inputs to the module's device. It belongs to the original module, so a light copy needs one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel

_HOOK, _BEFORE = "_hf_hook", "_old_forward"  # what accelerate adds to a module: the hook, and `forward` without it


def device_of(model: PreTrainedModel) -> torch.device:
    """Return the device that a model takes its input on, also where its first weights are on a disk."""
    if _HOOK not in model.__dict__ or model.device.type != "meta":
        return model.device
    hooks = (module.__dict__.get(_HOOK) for module in model.modules())
    each = (one for hook in hooks for one in getattr(hook, "hooks", [hook]))  # a chain of hooks, or a single one
    devices = (getattr(one, "execution_device", None) for one in each)
    return torch.device(next((device for device in devices if device is not None), "cpu"))


def is_placed(module: nn.Module) -> bool:
    """Return whether accelerate has replaced the `forward` of the module's class by its own, and nobody else's."""
    before = module.__dict__.get(_BEFORE)
    return _HOOK in module.__dict__ and getattr(before, "__func__", None) is type(module).forward


def place_alike(copied: nn.Module) -> None:
    """Let a copy of a placed module work on the copy; until then its `forward` is the original's."""
    forward: Any = copied.__dict__["forward"]
    own = MethodType(type(copied).forward, copied)
    copied.__dict__ |= {_BEFORE: own, "forward": partial(forward.func, copied)}


def weights_of(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight with its name, tied ones once; those on a disk are there only until the next one."""
    wanted = {name for name, _ in model.named_parameters()} - set(getattr(model, "all_tied_weights_keys", None) or {})
    for prefix, module in model.named_modules():
        with align_module_device(module):
            yield from (found for found in module.named_parameters(prefix, recurse=False) if found[0] in wanted)
