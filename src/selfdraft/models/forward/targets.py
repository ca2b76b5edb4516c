"""Choose the kind of target for a model: one that calls its layers, or one that calls the model as a whole."""

from __future__ import annotations

from typing import cast

from transformers import PreTrainedModel

from selfdraft.core.errors import Unsupported
from selfdraft.models.families.state_cache import keeps_state
from selfdraft.models.families.undivided import may_run_whole, undivided
from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.forward.target import Target


def target_of(model: PreTrainedModel, *, packed: bool = True, attention: str = "sdpa") -> Target:
    """Return the target of a loaded model. See `Target` for the arguments.

    A family whose layers keep a state is run as a whole, and so is one whose layers cannot be taken apart.

    A `StatefulTarget` has all that decoding, costs and certificates use of a `Target`, so it is returned as one. Code
    that takes layers apart calls `layered` first, which refuses it.

    Raises:
        UserError: the family is not supported; the message names it.
    """
    if keeps_state(getattr(model, "config", None)):
        if attention != "sdpa":
            raise Unsupported(
                f"model.attention={attention}: layers that keep a state run in the model's own forward only"
            )
        return cast("Target", StatefulTarget(model, packed=packed))
    try:
        return Target(model, packed=packed, attention=attention)
    except Unsupported:
        if attention != "sdpa" or not may_run_whole(model):
            raise
    return cast("Target", StatefulTarget(model, packed=packed))


def refuse_undrivable(model: PreTrainedModel) -> None:
    """Check what can be known of a model without a forward: its weights may be anywhere.

    Raises:
        UserError: the family is not supported.
    """
    undivided(model)
