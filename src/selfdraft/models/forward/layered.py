"""Get a target whose layers can be taken apart, for paths that leave out or replace some of them."""

from __future__ import annotations

from typing import cast

from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.forward.target import Target


def layered(target: TargetProtocol) -> Target:
    """Return a target whose layers can be taken apart in this process: a `Target`, or a wrapper of one.

    Raises:
        UserError: it runs the model as a whole.
        TypeError: its layers are elsewhere. Such a target registers its own function (see `functools.singledispatch`).
    """
    if isinstance(target, StatefulTarget):
        raise target.undivided()
    if not hasattr(target, "anatomy"):
        raise TypeError(f"{type(target).__name__} has no layers to take apart: register a function of its own for it")
    return cast("Target", target)
