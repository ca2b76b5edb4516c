"""Refuse a model with changes that have no effect when its layers are called one by one.

`generate` calls the model as a whole. Decoding with drafts calls its embedding, layers, norm and head one by one, and
builds the next forward's input by itself. Changes in between (PEFT's prompt and prefix tuning, a subclass with its own
`forward`, a hook on the whole model) would be ignored without notice, so such a model is refused.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from selfdraft.core.errors import UserError
from selfdraft.models.families.dispatch import device_of, is_placed
from selfdraft.models.families.hooks import has_global_hooks, has_hooks, per_call_arguments

_OF_MODEL = ("forward", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
_OF_BASE = ("forward",)


def refuse_overrides(model: PreTrainedModel) -> None:
    """Check a model as it is now; it takes about a millisecond.

    Raises:
        UserError: the model has such a change; the message names it.
    """
    base = model.base_model
    for owner, names in ((model, _OF_MODEL), (base, _OF_BASE)):
        for name in names:
            if not _is_stock(owner, name):
                raise _refusal(_told(owner, name))
        if has_hooks(owner):
            raise _refusal(f"{type(owner).__name__} has hooks of its own, and drafts call its layers without it")
    if has_global_hooks():
        raise _refusal("torch calls a hook for every module of this process, and drafts do not call every module")
    if torch.is_autocast_enabled(device_of(model).type):
        raise _refusal("torch.autocast is on; leave it, and load the model in the dtype that you want")
    for name, part in model.named_modules():
        if (argument := per_call_arguments(part)) is not None:
            raise _refusal(f"PEFT's {argument} are given to {name} for the rows of one forward, which drafts change")
        if part.training and _random_when_training(part):
            raise _refusal(f"{name or type(part).__name__} is in training mode; call model.eval() first")


def _is_stock(owner: nn.Module, name: str) -> bool:
    """Whether a method is the one that transformers defines for the owner's class or for its nearest ancestor.

    Where transformers defines none (a `forward` of remote code), any method of the class is accepted: it is compared
    with our forward when the model is prepared.
    """
    line = (c for c in type(owner).__mro__ if c.__module__.startswith("transformers.") and name in vars(c))
    if (known := next(line, None)) is None:
        stock = getattr(type(owner), name)
    else:
        stock = getattr(known, name)
        if not str(getattr(inspect.unwrap(stock), "__module__", "")).startswith("transformers."):
            return False  # the class's own was replaced
    found: Any = owner._old_forward if name == "forward" and is_placed(owner) else getattr(owner, name)
    found = getattr(found, "_torchdynamo_orig_callable", found)  # the method before torch.compile
    return getattr(found, "__func__", None) is stock and found.__self__ is owner


def _told(owner: nn.Module, name: str) -> str:
    own = getattr(owner, name)
    learned = getattr(getattr(own, "__self__", None), "active_peft_config", None)
    if learned is not None:
        kind = getattr(learned.peft_type, "value", learned.peft_type)
        return f"PEFT's {kind} works through {name}, which drafts do not call; adapters within the layers (LoRA) work"
    return f"{type(owner).__name__} has a {name} of its own, which drafts do not call"


def _random_when_training(part: nn.Module) -> bool:
    """Whether training mode makes a module random, or keeps it from writing its keys to the cache."""
    rate = getattr(part, "attention_dropout", 0.0)
    if isinstance(part, _DropoutNd):
        return part.p > 0
    return bool(getattr(part, "gradient_checkpointing", False)) or (isinstance(rate, float) and rate > 0)


def _refusal(reason: str) -> UserError:
    return UserError(f"custom_generate: this model cannot be drafted for: {reason}")
