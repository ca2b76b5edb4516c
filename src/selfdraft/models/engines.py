"""Engines: how a target's layers are run, one by one in Python (eager) or compiled into one graph."""

from __future__ import annotations

import time
from collections.abc import Callable

from selfdraft.core.errors import UserError
from selfdraft.models.compiling import compilable, compile_layers
from selfdraft.models.memory import available
from selfdraft.models.target import Target
from selfdraft.models.weights import SAME

AUTO, EAGER, COMPILED = "auto", "eager", "compiled"
ENGINES = (AUTO, EAGER, COMPILED)


def use_engine(
    target: Target,
    engine: str,
    one_by_one: str = "",
    tell: Callable[[str], object] = lambda line: None,
    weights: str = SAME,
) -> str:
    """Make `target` run its layers by an engine; return, in a line, by which one and why.

    Args:
        engine: one of `ENGINES`; `auto` compiles where that is possible.
        one_by_one: why this target's layers have to be run one by one; empty if they need not.
        tell: called with a line before the layers are compiled, which takes seconds.
        weights: one of `weights.WEIGHTS`: how a graph stores matrices; the model's are rounded already.

    Raises:
        UserError: `compiled` is asked for and not possible here.
    """
    stored = "" if weights == SAME else f" with {weights} weights (the target is the model that was rounded to them)"
    if engine == EAGER:
        return f"eager{stored}"
    begun = time.perf_counter()
    try:
        if one_by_one:
            raise UserError(one_by_one)
        # A graph has a copy of the weights, and OpenVINO holds another one while it makes it.
        copies = 2 * sum(p.nbytes for layer in target.anatomy.layers for p in layer.parameters())
        if engine == AUTO and copies > available(target.device):
            raise UserError(f"making a graph needs {copies / 1e6:,.0f} MB, which are not free")
        if compilable(target):
            tell("compiling the layers into one graph (model.engine=eager does without)")
            target.tell = tell
        compile_layers(target, weights)
    except UserError as reason:
        if engine == COMPILED:
            raise UserError(f"model.engine=compiled: {reason}") from None
        return f"eager{stored}: {reason}"
    return f"compiled by OpenVINO{stored}, in {time.perf_counter() - begun:.1f} s"
