"""DEL (Entezari Zarch et al. 2025, arXiv 2504.05598): choose exit layer and draft length by expected tokens per layer.

The hidden states of a verification show which tokens each exit layer would have drafted (*shadow tokens*). An exit's
acceptance rate is the share of its shadow tokens that equal the whole model's tokens; older tokens count less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.base import Context, Draft, Step
from selfdraft.drafters.sparse import Memory, SparseConfig, SparseDrafter
from selfdraft.models.target import Target


@dataclass
class DynamicExitConfig(SparseConfig):
    """Every `stride`-th layer is an exit. After every `interval`-th verification its shadow tokens are read, and the
    exit and the draft length, from 0 to `draft_length`, are chosen anew. A token counts `decay` times the next one."""

    name: str = "dynamic_exit"
    draft_length: int = option(8, at_least=1)
    stride: int = option(2, at_least=1)
    interval: int = option(4, at_least=1)
    decay: float = option(0.95, at_least=0.0, at_most=1.0)


@dataclass
class Shadow:
    """One request's decayed counts of shadow tokens, and of the right ones per exit, and its number of steps."""

    right: np.ndarray
    counted: np.ndarray = field(default_factory=lambda: np.ones(1))
    steps: int = 0


class DynamicExit(SparseDrafter):
    """Drafts by early exit at a layer chosen by the text. Verifications whose states are not read reuse the draft's."""

    Config = DynamicExitConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    config: DynamicExitConfig
    reuse = True

    def __init__(self, target: Target, config: DynamicExitConfig) -> None:
        super().__init__(target, config)
        self.layers = len(target.full.layers)
        self.exits = list(range(config.stride, self.layers, config.stride)) or [max(1, self.layers // 2)]
        self.use(SkipSet.from_layer(self.layers, self.exits[len(self.exits) // 2]))
        self.paths = [target.sparse_path(SkipSet.from_layer(self.layers, e)) for e in self.exits]

    def start(self, context: Context) -> None:
        """Begin with one shadow token counted per exit, of which sqrt(exit / layers) was right: the prior."""
        super().start(context)
        context.memory.own = Shadow(np.sqrt(np.array(self.exits) / self.layers))
        self._choose(context.memory)

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """Return drafts; verifications whose shadow tokens are read keep their hidden states."""
        return [
            replace(draft, wants_states=context.memory.own.steps % self.config.interval == 0)
            for context, draft in zip(contexts, super().propose_batch(contexts), strict=True)
        ]

    def observe(self, context: Context, step: Step) -> None:
        """Compare the shadow tokens after the root and every accepted node with the tokens that followed."""
        super().observe(context, step)
        shadow: Shadow = context.memory.own
        if shadow.steps % self.config.interval == 0 and step.states is not None:
            nodes = [0, *(node + 1 for node in step.path)]
            states = step.states[self.exits][:, nodes].flatten(0, 1)
            said = self.target.exit_tokens(states).cpu().reshape(len(self.exits), len(nodes))
            right = (said == step.predictions[nodes]).double().numpy()
            for token in range(len(nodes)):
                shadow.right = self.config.decay * shadow.right + right[:, token]
                shadow.counted = self.config.decay * shadow.counted + 1
            self._choose(context.memory)
        shadow.steps += 1

    def _choose(self, memory: Memory) -> None:
        """Choose the exit and draft length with the most expected tokens per layer run, drafting and verifying."""
        shadow: Shadow = memory.own
        acceptance = np.minimum(shadow.right / shadow.counted, 1.0)[:, None]
        lengths = np.arange(self.config.draft_length + 1)
        emitted = np.cumsum(acceptance**lengths, axis=1)
        per_layer = emitted / (np.array(self.exits)[:, None] * lengths + self.layers)
        exit_, memory.limit = (int(i) for i in np.unravel_index(per_layer.argmax(), per_layer.shape))
        found, head = self.paths[exit_], memory.path.head
        memory.path = found if head is None else replace(found, head=head, vocabulary=memory.path.vocabulary)
