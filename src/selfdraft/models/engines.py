"""Engines: how a target's layers are run, one by one in Python (eager) or compiled into one graph."""

from __future__ import annotations

import time

from selfdraft.core.errors import UserError
from selfdraft.models.compiled import compile_layers
from selfdraft.models.target import Target

AUTO, EAGER, COMPILED = "auto", "eager", "compiled"
ENGINES = (AUTO, EAGER, COMPILED)


def use_engine(target: Target, engine: str) -> str:
    """Make `target` run its layers by an engine; return, in a line, by which one and why.

    Args:
        engine: one of `ENGINES`; `auto` compiles where that is possible.

    Raises:
        UserError: `compiled` is asked for and not possible here.
    """
    if engine == EAGER:
        return "eager"
    begun = time.perf_counter()
    try:
        compile_layers(target)
    except UserError as reason:
        if engine == COMPILED:
            raise UserError(f"model.engine=compiled: {reason}") from None
        return f"eager: {reason}"
    return f"compiled by OpenVINO, in {time.perf_counter() - begun:.1f} s"
