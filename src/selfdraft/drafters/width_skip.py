"""Width sparsity: MLPs with only the neurons that the prompt uses most (GRIFFIN, Dong et al. 2024, arXiv 2404.01365).

The prompt runs once through layers that write down their activations; then the weights are sliced, once a prompt.
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
    """Keep the share `ratio` of every MLP's neurons; skip an even share `sparsity` of the sublayers besides."""

    name: str = "width_skip"
    ratio: float = option(0.5, at_least=0.0, at_most=1.0)
    sparsity: float = option(0.0, at_least=0.0, below=1.0)


class WidthSkip(SparseDrafter):
    """Drafts through a path of each prompt's own."""

    Config = WidthSkipConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    config: WidthSkipConfig

    def __init__(self, target: Target, config: WidthSkipConfig) -> None:
        """Try one slice, for its cost.

        Raises:
            UserError: for a family whose MLPs cannot be sliced, by name.
        """
        super().__init__(target, config)
        self.skip = SkipSet.spread(len(target.full.layers), config.sparsity)
        self._unsliced = target.sparse_path(self.skip)
        path = self._sliced([0, 1], None)
        if self._costs is not None:
            self._path_costs = target.costs_of(path)

    def path_for(self, context: Context) -> Path:
        """None of its own before the first draft: slicing costs what a dozen drafts do, and a guard may want none."""
        return self._unsliced

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """Through each request's own slices."""
        for context in contexts:
            if context.memory.path is self._unsliced:
                ids = None if self.config.draft_vocabulary is None else self.vocabulary(context)
                context.memory.path = self._sliced(context.tokens, ids)
        return super().propose_batch(contexts)

    def _sliced(self, tokens: list[int], vocabulary: list[int] | None) -> Path:
        mlps = self.target.most_used_mlps(tokens, self.config.ratio, self.skip)
        return self.target.sparse_path(self.skip, mlps=mlps, vocabulary=vocabulary)
