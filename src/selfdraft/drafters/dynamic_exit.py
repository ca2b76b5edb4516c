"""DEL (Entezari Zarch et al. 2025, arXiv 2504.05598): exit layer and draft length by predicted tokens per layer.

What each layer would have drafted is read off the hidden states of a verification (*shadow tokens*); how often that is
what the whole model says is the layer's acceptance, with older tokens counting less.
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
    """Every `stride`-th layer is an exit that may be chosen, anew after every `interval`-th verification, whose shadow
    tokens are read. A token counts `decay` times the one after it. Drafts have up to `draft_length` tokens, or none."""

    name: str = "dynamic_exit"
    draft_length: int = option(8, at_least=1)
    stride: int = option(2, at_least=1)
    interval: int = option(4, at_least=1)
    decay: float = option(0.95, at_least=0.0, at_most=1.0)


@dataclass
class Shadow:
    """Of one request: per exit the decayed counts of shadow tokens, and of those that were right; and steps so far."""

    right: np.ndarray
    counted: np.ndarray = field(default_factory=lambda: np.ones(1))
    steps: int = 0


class DynamicExit(SparseDrafter):
    """Early exit at a layer that the text decides. Where states are not read, verification reuses what was drafted."""

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
        """Nothing is known of any exit: as if the square root of its depth's share had been right of one token."""
        super().start(context)
        context.memory.own = Shadow(np.sqrt(np.array(self.exits) / self.layers))
        self._choose(context.memory)

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """The verifications whose shadow tokens are read keep their hidden states."""
        return [
            replace(draft, wants_states=context.memory.own.steps % self.config.interval == 0)
            for context, draft in zip(contexts, super().propose_batch(contexts), strict=True)
        ]

    def observe(self, context: Context, step: Step) -> None:
        """Compare shadow tokens after the root and every accepted node with what followed."""
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
        """The exit and length with the most expected tokens for each layer that is run, drafting and verifying."""
        shadow: Shadow = memory.own
        acceptance = np.minimum(shadow.right / shadow.counted, 1.0)[:, None]
        lengths = np.arange(self.config.draft_length + 1)
        emitted = np.cumsum(acceptance**lengths, axis=1)
        per_layer = emitted / (np.array(self.exits)[:, None] * lengths + self.layers)
        exit_, memory.limit = (int(i) for i in np.unravel_index(per_layer.argmax(), per_layer.shape))
        found, head = self.paths[exit_], memory.path.head
        memory.path = found if head is None else replace(found, head=head, vocabulary=memory.path.vocabulary)
