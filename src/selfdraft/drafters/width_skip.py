"""Width sparsity: MLPs with only the neurons that the prompt uses most (GRIFFIN, Dong et al. 2024, arXiv 2404.01365).

The prompt runs once through layers that record their activations; then the weights are sliced, once per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.base import Context, Draft
from selfdraft.drafters.sparse import SparseConfig, SparseDrafter
from selfdraft.models.sparse import Path
from selfdraft.models.target import Target


@dataclass
class WidthSkipConfig(SparseConfig):
    """Keep the share `ratio` of every MLP's neurons; also skip an even share `sparsity` of the sublayers."""

    name: str = "width_skip"
    ratio: float = option(0.5, at_least=0.0, at_most=1.0)
    sparsity: float = option(0.0, at_least=0.0, below=1.0)


class WidthSkip(SparseDrafter):
    """Drafts through a path that is sliced for each prompt."""

    Config = WidthSkipConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    config: WidthSkipConfig

    def __init__(self, target: Target, config: WidthSkipConfig) -> None:
        """Slice one path, to measure its cost.

        Raises:
            UserError: for a model family whose MLPs cannot be sliced.
        """
        super().__init__(target, config)
        self.skip = SkipSet.spread(len(target.full.layers), config.sparsity)
        self._unsliced = target.sparse_path(self.skip)
        path = self._sliced([0, 1], None)
        if self._costs is not None:
            self._path_costs = target.costs_of(path)

    def path_for(self, context: Context) -> Path:
        """Return the shared unsliced path. Slicing costs as much as a dozen drafts, and a guard may want no draft."""
        return self._unsliced

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """Slice the paths of requests that have none yet, and draft through each request's own path."""
        for context in contexts:
            if context.memory.path is self._unsliced:
                ids = None if self.config.draft_vocabulary is None else self.vocabulary(context)
                context.memory.path = self._sliced(context.tokens, ids)
        return super().propose_batch(contexts)

    def _sliced(self, tokens: list[int], vocabulary: list[int] | None) -> Path:
        mlps = self.target.most_used_mlps(tokens, self.config.ratio, self.skip)
        return self.target.sparse_path(self.skip, mlps=mlps, vocabulary=vocabulary)
