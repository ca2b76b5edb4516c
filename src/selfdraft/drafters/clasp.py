"""CLaSp (Chen et al. 2025, arXiv 2505.24196): choose the skipped layers by the last accepted token's hidden states.

Instead of a search, dynamic programming over the hidden states of a verification finds the layers whose removal changes
the last state least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.base import Context, Draft, Step
from selfdraft.drafters.sparse import Memory, SparseConfig, SparseDrafter
from selfdraft.models.target import Target


@dataclass
class ClaspConfig(SparseConfig):
    """Skip a share `sparsity` of the layers between the first and the last, as whole layers; choose them anew every
    `interval` steps."""

    name: str = "clasp"
    sparsity: float = option(0.2, at_least=0.0, below=1.0)
    interval: int = option(8, at_least=1)


class Clasp(SparseDrafter):
    """Drafts without the whole layers that the text chooses. A request begins with evenly spread ones."""

    Config = ClaspConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    config: ClaspConfig

    def __init__(self, target: Target, config: ClaspConfig) -> None:
        super().__init__(target, config)
        layers = len(target.full.layers)
        self.inner = range(1, max(layers - 1, 1))
        self.count = min(int(len(self.inner) * config.sparsity + 0.5), len(self.inner))
        step = len(self.inner) / max(self.count, 1)
        even = frozenset(self.inner[int((i + 0.5) * step)] for i in range(self.count))
        self.use(SkipSet(even, even))

    def start(self, context: Context) -> None:
        """Begin with no steps counted."""
        super().start(context)
        context.memory.own = 0

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """Return drafts; verifications after which layers are chosen keep their hidden states."""
        return [
            replace(draft, wants_states=self._is_due(context))
            for context, draft in zip(contexts, super().propose_batch(contexts), strict=True)
        ]

    def observe(self, context: Context, step: Step) -> None:
        """If due, choose layers by the last accepted node, or by the root if no node was accepted."""
        super().observe(context, step)
        memory: Memory = context.memory
        if self._is_due(context) and step.states is not None:
            node = step.path[-1] + 1 if step.path else 0
            position = len(context.tokens) - 2  # only the bonus token comes after it, which no forward has seen
            chosen = self.target.most_similar_skips(
                context.row, position, context.tokens[position], step.states[:, node], self.count, self.inner
            )
            found = self.target.sparse_path(chosen)
            memory.path = replace(found, head=memory.path.head, vocabulary=memory.path.vocabulary)
        memory.own += 1

    def _is_due(self, context: Context) -> bool:
        return self.count > 0 and context.memory.own % self.config.interval == 0
