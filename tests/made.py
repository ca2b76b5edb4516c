"""Drafters for tests, with costs that are made up: measured ones take a second and would differ from run to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from selfdraft.core.costs import CostCurve, Costs
from selfdraft.decoding.tree_parallel import TreeParallelTarget, shared_costs
from selfdraft.drafters.base import Drafter, DrafterConfig
from selfdraft.drafters.presets import drafter_for
from selfdraft.models.measuring import profiling

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
SECONDS = (1.0, 1.02, 1.05, 1.1, 1.3, 1.7, 2.5)  # of a forward: nearly flat at first, as on real machines


def costs_for(target: Any) -> Costs:
    """The costs of a target: a stub's or a test's own `costs` and `costs_of`, or made up by the length of a path."""
    if isinstance(target, TreeParallelTarget):
        return shared_costs(costs_for(target.target))
    if not hasattr(target, "costs"):
        return Costs(lambda path: _curve(1.0 if path is None else _share(path, target.full)))
    return Costs(lambda path: target.costs if path is None else target.costs_of(path))


def _share(path: Any, full: Any) -> float:
    """The part of the weights of a model's layers that a path reads."""
    read, all_of_them = (sum(p.numel() for layer in of.layers for p in layer.parameters()) for of in (path, full))
    return 0.05 + 0.95 * read / all_of_them


def _curve(share: float) -> CostCurve:
    return CostCurve(SIZES, tuple(share * seconds for seconds in SECONDS))


def made(target: Any, config: DrafterConfig) -> Drafter:
    """The drafter that `config` describes."""
    return drafter_for(target, config, costs_for(target))


def measure_once(patch: pytest.MonkeyPatch) -> None:
    """Let costs be measured in one round, where no test looks at them: that is a third of a short run."""
    every = profiling.runs_of

    def once(target: Any, jobs: dict, rounds: int, before: Callable[[], object] | None = None) -> dict:
        return every(target, jobs, 1, before)

    patch.setattr(profiling, "runs_of", once)
    patch.setattr(profiling, "MORE", 0)
