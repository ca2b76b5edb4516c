"""DEL (Entezari Zarch et al. 2025, arXiv 2504.05598): choose exit layer and draft length by expected tokens per layer.

The hidden states of a verification show which tokens each exit layer would have drafted (*shadow tokens*). An exit's
acceptance rate is the share of its shadow tokens that equal the whole model's tokens; older tokens count less.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from selfdraft.core.costs import Costs
from selfdraft.core.options import choice_name, option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.paths.base import PathConfig, PathPolicy, Use
from selfdraft.drafters.step import Context, Step
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.dynamic import exit_tokens
from selfdraft.models.paths.sparse import sparse_path


@dataclass
class DynamicExitConfig(PathConfig):
    """Which layers may be exits, and how the exit and the draft length are chosen from shadow tokens."""

    name: str = choice_name("dynamic_exit")
    stride: int = option(2, at_least=1, help="number of layers between two possible exits; 1 considers every layer")
    interval: int = option(
        4, at_least=1, help="number of verifications after which exit and draft length are chosen anew"
    )
    decay: float = option(
        0.95,
        at_least=0.0,
        at_most=1.0,
        help="how fast older observations lose weight: the weight of one relative to that of the next; 1: never",
    )


@dataclass
class Shadow:
    """One request's decayed counts of shadow tokens, and what is chosen by them.

    Attributes:
        right, counted: shadow tokens that were right, by exit, and all of them.
        steps: number of steps. chosen: index of the exit. length: the draft length.
    """

    right: np.ndarray
    counted: np.ndarray = field(default_factory=lambda: np.ones(1))
    steps: int = 0
    chosen: int = 0
    length: int = 0


class DynamicExit(PathPolicy):
    """Drafts with the layers before an exit that the text decides.

    A verification can reuse the draft's hidden states, except when its own states are read to choose an exit.
    """

    Config = DynamicExitConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    config: DynamicExitConfig

    def __init__(self, target: TargetProtocol, config: DynamicExitConfig, costs: Costs, use: Use) -> None:
        super().__init__(target, config, costs, use)
        self.layers = len(target.full.layers)
        self.exits = list(range(config.stride, self.layers, config.stride)) or [max(1, self.layers // 2)]
        self.paths = [sparse_path(target, SkipSet.from_layer(self.layers, e)) for e in self.exits]
        self.typical = self.paths[len(self.exits) // 2]
        self.states: WeakKeyDictionary[Context, Shadow] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin with one shadow token counted per exit, of which sqrt(exit / layers) was right: the prior."""
        self.states[context] = Shadow(np.sqrt(np.array(self.exits) / self.layers))
        self._choose(self.states[context])

    def path(self, context: Context) -> Path:
        """Return the path to the exit chosen last."""
        return self.paths[self.states[context].chosen]

    def longest(self, context: Context) -> int:
        """Return the draft length chosen with the exit."""
        return self.states[context].length

    def wants_states(self, context: Context) -> bool:
        """Return whether the shadow tokens of the next verification are read."""
        return self.states[context].steps % self.config.interval == 0

    def observe(self, context: Context, step: Step) -> None:
        """Compare the shadow tokens after the root and every accepted node with the tokens that followed."""
        shadow = self.states[context]
        if self.wants_states(context) and step.states is not None:
            nodes = [0, *(node + 1 for node in step.nodes)]
            states = step.states[self.exits][:, nodes].flatten(0, 1)
            predicted = exit_tokens(self.target, states).cpu().reshape(len(self.exits), len(nodes))
            right = (predicted == step.predictions[nodes]).double().numpy()
            for token in range(len(nodes)):
                shadow.right = self.config.decay * shadow.right + right[:, token]
                shadow.counted = self.config.decay * shadow.counted + 1
            self._choose(shadow)
        shadow.steps += 1

    def _choose(self, shadow: Shadow) -> None:
        """Choose the exit and draft length with the most expected tokens per layer run, drafting and verifying."""
        acceptance = np.minimum(shadow.right / shadow.counted, 1.0)[:, None]
        lengths = np.arange(self.use.longest + 1)
        emitted = np.cumsum(acceptance**lengths, axis=1)
        per_layer = emitted / (np.array(self.exits)[:, None] * lengths + self.layers)
        shadow.chosen, shadow.length = (int(i) for i in np.unravel_index(per_layer.argmax(), per_layer.shape))
