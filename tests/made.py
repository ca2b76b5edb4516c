"""Drafters for tests: with the costs that a stub names, or measured ones."""

from __future__ import annotations

from typing import Any

from selfdraft.core.costs import Costs
from selfdraft.decoding.tree_parallel import TreeParallelTarget, shared_costs
from selfdraft.drafters.base import Drafter, DrafterConfig
from selfdraft.drafters.presets import drafter_for
from selfdraft.models.profiling import costs_on


def costs_for(target: Any) -> Costs:
    """The costs of a target: a stub's or a test's own `costs` and `costs_of`, or those measured on a real one."""
    if isinstance(target, TreeParallelTarget):
        return shared_costs(costs_for(target.target))
    if not hasattr(target, "costs"):
        return costs_on(target)
    return Costs(lambda path: target.costs if path is None else target.costs_of(path))


def made(target: Any, config: DrafterConfig) -> Drafter:
    """The drafter that `config` describes."""
    return drafter_for(target, config, costs_for(target))
