"""Layer skipping: the model without some of its sublayers, always the same ones.

Draft & Verify (Zhang et al. 2023, arXiv 2309.08168), with a fixed skip set.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfdraft.core.costs import Costs
from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.paths.base import FixedPath, PathConfig, Use
from selfdraft.models.protocol import TargetProtocol
from selfdraft.models.sparse import sparse_path


@dataclass
class LayerSkipConfig(PathConfig):
    """Skip an even share `sparsity` of the sublayers, or exactly those named in `skip_attention` and `skip_mlp`."""

    name: str = "layer_skip"
    sparsity: float = option(0.2, at_least=0.0, below=1.0)
    skip_attention: list[int] | None = option(None, at_least=0)
    skip_mlp: list[int] | None = option(None, at_least=0)


class LayerSkip(FixedPath):
    """Uses one skip set for all requests."""

    Config = LayerSkipConfig

    def __init__(self, target: TargetProtocol, config: LayerSkipConfig, costs: Costs, use: Use) -> None:
        """Build the path.

        Raises:
            UserError: for layers that the model does not have.
        """
        super().__init__(target, config, costs, use)
        layers = len(target.full.layers)
        skip = SkipSet.named_or_spread(layers, config.skip_attention, config.skip_mlp, config.sparsity)
        self.typical = sparse_path(target, skip)
