"""Width sparsity: MLPs with only the neurons that the prompt uses most (GRIFFIN, Dong et al. 2024, arXiv 2404.01365).

The prompt runs once through layers that record their activations; then the weights are sliced, once per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

from selfdraft.core.costs import Costs
from selfdraft.core.options import choice_name, option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.paths.base import PathConfig, PathPolicy, Use
from selfdraft.drafters.step import Context
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.mlps import neurons_of
from selfdraft.models.paths.neurons import most_used_mlps
from selfdraft.models.paths.sparse import sparse_path


@dataclass
class WidthSkipConfig(PathConfig):
    """How much of the model is kept."""

    name: str = choice_name("width_skip")
    ratio: float = option(
        0.5,
        at_least=0.0,
        at_most=1.0,
        help="share of the neurons of each MLP that is kept; fewer make drafts cheaper and worse",
    )
    sparsity: float = option(0.0, at_least=0.0, below=1.0, help="share of the sublayers that are also skipped")


class WidthSkip(PathPolicy):
    """Makes a path with smaller MLPs for each prompt.

    It is sliced for the first draft and not at the start, because slicing costs as much as a dozen drafts, and a guard
    may want no draft.
    """

    Config = WidthSkipConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    tensor_parallel: ClassVar[bool] = False  # cuts matrices
    config: WidthSkipConfig

    def __init__(self, target: TargetProtocol, config: WidthSkipConfig, costs: Costs, use: Use) -> None:
        """Slice one path, to measure its cost.

        Raises:
            UserError: for a model family whose MLPs cannot be sliced.
        """
        super().__init__(target, config, costs, use)
        self.neurons = neurons_of(target)
        self.skip = SkipSet.spread(len(target.full.layers), config.sparsity)
        self.typical = self._sliced([0, 1])
        self.paths: WeakKeyDictionary[Context, Path] = WeakKeyDictionary()

    def path(self, context: Context) -> Path:
        """Return the path sliced for the request's prompt."""
        if context not in self.paths:
            self.paths[context] = self._sliced(context.tokens)
        return self.paths[context]

    def _sliced(self, tokens: Sequence[int]) -> Path:
        mlps = most_used_mlps(self.target, self.neurons, tokens, self.config.ratio, self.skip)
        return sparse_path(self.target, self.skip, mlps=mlps)
