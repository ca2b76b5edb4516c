"""The full model as the drafting path: all layers draft, as in Jacobi decoding."""

from __future__ import annotations

from selfdraft.core.costs import Costs
from selfdraft.drafters.paths.base import FixedPath, PathConfig, Use
from selfdraft.models.forward.protocol import TargetProtocol


class Full(FixedPath):
    """Drafts with all layers. Such forwards count as forwards of the target."""

    Config = PathConfig

    def __init__(self, target: TargetProtocol, config: PathConfig, costs: Costs, use: Use) -> None:
        super().__init__(target, config, costs, use)
        self.typical = target.full
