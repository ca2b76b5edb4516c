"""Decide which models are run as a whole: if their layers keep a state, or if the layers cannot be taken apart."""

from __future__ import annotations

import inspect

from transformers import PreTrainedModel

from selfdraft.core.errors import UserError
from selfdraft.models.families.anatomy import dissect, refuse, text_config
from selfdraft.models.families.peculiar import peculiarity
from selfdraft.models.families.state_cache import keeps_state

CACHES = ("past_key_values", "cache_params")  # the names of the cache that a model's forward takes and returns


def cache_name(model: PreTrainedModel) -> str:
    """Return the name under which a model's forward takes and returns its cache; empty if it takes none."""
    takes = inspect.signature(model.forward).parameters
    return next((name for name in CACHES if name in takes), "")


def may_run_whole(model: PreTrainedModel) -> bool:
    """Return whether a model may be run as a whole, by its own forward and cache, as far as can be known without one.

    A model that its user has changed is left to the refusal which names the change.

    Raises:
        UserError: only the cache is missing.
    """
    if not hasattr(model, "config") or peculiarity(model) is not None or text_config(model).is_encoder_decoder:
        return False
    depth = getattr(text_config(model), "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < 1:
        return False
    if not cache_name(model):
        raise refuse(model, "its forward takes no cache, from which rejected tokens could be taken back")
    return True


def undivided(model: PreTrainedModel) -> bool:
    """Return whether a model is run as a whole, as far as can be known without a forward: its weights may be anywhere.

    Raises:
        UserError: it cannot be run in parts either; the message names the family.
    """
    if keeps_state(getattr(model, "config", None)):
        return True
    try:
        dissect(model)
    except UserError:
        if may_run_whole(model):
            return True
        raise
    return False
