"""Layer skipping: the model without some of its sublayers, always the same ones.

Draft & Verify (Zhang et al. 2023, arXiv 2309.08168), with a fixed skip set.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfdraft.core.costs import Costs
from selfdraft.core.options import choice_name, option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.paths.base import FixedPath, PathConfig, Use
from selfdraft.models.engines.choice import settled
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.sparse import sparse_path


@dataclass
class LayerSkipConfig(PathConfig):
    """Which sublayers are skipped: a share of them, or exactly those that are named."""

    name: str = choice_name("layer_skip")
    sparsity: float = option(
        0.2,
        at_least=0.0,
        below=1.0,
        help="share of the sublayers (attentions and MLPs) to skip, spread evenly; the first and last layer are "
        "kept. More makes drafts cheaper and worse. Not used if skip_attention or skip_mlp is given",
    )
    skip_attention: list[int] | None = option(
        None, at_least=0, help="layers whose attention is skipped, counted from 0, e.g. [3,7]"
    )
    skip_mlp: list[int] | None = option(None, at_least=0, help="layers whose MLP is skipped, counted from 0")

    def skip_set(self, layers: int) -> SkipSet:
        """Return the skip set for a model of `layers` layers.

        Raises:
            UserError: a named layer does not exist.
        """
        return SkipSet.named_or_spread(layers, self.skip_attention, self.skip_mlp, self.sparsity)

    def refuse_missing_layers(self, layers: int) -> None:
        """Check the named layers (see `PathConfig`)."""
        self.skip_set(layers)


class LayerSkip(FixedPath):
    """Uses one skip set for all requests."""

    Config = LayerSkipConfig

    def __init__(self, target: TargetProtocol, config: LayerSkipConfig, costs: Costs, use: Use) -> None:
        """Build the path.

        Raises:
            UserError: for layers that the model does not have.
        """
        super().__init__(target, config, costs, use)
        skip = config.skip_set(len(target.full.layers))
        self.typical = settled(target, sparse_path(target, skip), reuse=use.reuse)
