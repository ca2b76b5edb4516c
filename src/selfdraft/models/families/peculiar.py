"""Find what sets one model object apart from others of its family, so that a refusal blames that and not the family."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from selfdraft.models.families.dispatch import device_of
from selfdraft.models.families.hooks import has_hooks


def peculiarity(model: nn.Module) -> str | None:
    """Return what was changed on a model and how to undo it, or None if nothing was found."""
    if not isinstance(model, PreTrainedModel):
        return f"it is wrapped in a {type(model).__name__}; give the transformers model within"
    whole = any(parameter.device.type != "meta" for parameter in model.parameters())
    for name, part in model.named_modules():
        where = name or "the model"
        if hasattr(part, "_hf_hook") or (whole and any(p.device.type == "meta" for p in part.parameters(False))):
            return f"{where} is offloaded or placed by accelerate; load the model whole on one device"
        if parametrize.is_parametrized(part):
            return f"{where} is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
        if "_orig_mod" in part._modules:
            return f"{where} is compiled; give the model as it was before torch.compile"
        if "forward" in part.__dict__:
            return f"{where} has a forward of its own; give it back that of its class"
        if has_hooks(part):
            return f"{where} has hooks; remove them"
    if whole and torch.is_autocast_enabled(device_of(model).type):
        return "torch.autocast is on; leave it, and load the model in the dtype that you want"
    if len(devices := {str(parameter.device) for parameter in model.parameters()}) > 1:
        return f"its weights lie on {' and '.join(sorted(devices))}; load the model whole on one device"
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    if len(dtypes) > 1:
        return f"its parameters are in {' and '.join(sorted(dtypes))}; load the model in one dtype"
    return None
