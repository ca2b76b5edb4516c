"""CLaSp (Chen et al. 2025, arXiv 2505.24196): choose the skipped layers by the last accepted token's hidden states.

Instead of a search, dynamic programming over the hidden states of a verification finds the layers whose removal changes
the last state least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

from selfdraft.core.costs import Costs
from selfdraft.core.options import choice_name, option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.paths.base import PathConfig, PathPolicy, Use
from selfdraft.drafters.step import Context, Step
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.dynamic import most_similar_skips
from selfdraft.models.paths.sparse import sparse_path


@dataclass
class ClaspConfig(PathConfig):
    """How many layers are skipped, and how often they are chosen."""

    name: str = choice_name("clasp")
    sparsity: float = option(
        0.2,
        at_least=0.0,
        below=1.0,
        help="share of the inner layers to skip; the first and last layer are kept. More makes drafts cheaper and "
        "worse",
    )
    interval: int = option(
        8, at_least=1, help="number of decoding steps after which the layers to skip are chosen anew"
    )


@dataclass
class State:
    """A request's path, and the number of its steps."""

    path: Path
    steps: int = 0


class Clasp(PathPolicy):
    """Skips whole layers, chosen anew as the text goes on. A request begins with evenly spread ones."""

    Config = ClaspConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    config: ClaspConfig

    def __init__(self, target: TargetProtocol, config: ClaspConfig, costs: Costs, use: Use) -> None:
        super().__init__(target, config, costs, use)
        layers = len(target.full.layers)
        self.inner = range(1, max(layers - 1, 1))
        self.count = min(int(len(self.inner) * config.sparsity + 0.5), len(self.inner))
        step = len(self.inner) / max(self.count, 1)
        even = frozenset(self.inner[int((i + 0.5) * step)] for i in range(self.count))
        self.typical = sparse_path(target, SkipSet(even, even))
        self.states: WeakKeyDictionary[Context, State] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin with no steps counted."""
        self.states[context] = State(self.typical)

    def path(self, context: Context) -> Path:
        """Return the path without the layers chosen last."""
        return self.states[context].path

    def wants_states(self, context: Context) -> bool:
        """Return whether layers are chosen after the next verification."""
        return self.count > 0 and self.states[context].steps % self.config.interval == 0

    def observe(self, context: Context, step: Step) -> None:
        """If due, choose layers by the last accepted node, or by the root if no node was accepted."""
        state = self.states[context]
        if self.wants_states(context) and step.states is not None:
            node = step.nodes[-1] + 1 if step.nodes else 0
            position = len(context.tokens) - 2  # only the bonus token comes after it, which no forward has seen
            token, states = context.tokens[position], step.states[:, node]
            chosen = most_similar_skips(self.target, context.row, position, token, states, self.count, self.inner)
            state.path = sparse_path(self.target, chosen)
        state.steps += 1
