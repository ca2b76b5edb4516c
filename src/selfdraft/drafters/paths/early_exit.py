"""Early exit: the first layers, the final norm and the head (LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710).

These are the full model's own layers, so a verification can continue from the keys and hidden states that drafting left
(see `reuse` in `chain.ChainConfig`).
"""

from __future__ import annotations

from dataclasses import dataclass

from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.core.options import choice_name, option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.paths.base import FixedPath, PathConfig, Use
from selfdraft.models.engines.choice import settled
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.sparse import sparse_path


@dataclass
class EarlyExitConfig(PathConfig):
    """Where the path leaves the model."""

    name: str = choice_name("early_exit")
    exit_layer: int | None = option(
        None,
        at_least=1,
        help="number of first layers that draft; fewer are cheaper and draft worse. null: half of them",
    )

    def exit_of(self, layers: int) -> int:
        """Return the exit layer for a model of `layers` layers.

        Raises:
            UserError: the exit is not before the last layer.
        """
        exit_layer = max(1, layers // 2) if self.exit_layer is None else self.exit_layer
        if exit_layer >= layers > 1:
            raise UserError(
                f"drafter.path.exit_layer={exit_layer}: this model has {layers} layers; leave before the last, "
                f"at 1 to {layers - 1}"
            )
        return exit_layer

    def refuse_missing_layers(self, layers: int) -> None:
        """Check the exit (see `PathConfig`)."""
        self.exit_of(layers)


class EarlyExit(FixedPath):
    """Uses one exit for all requests."""

    Config = EarlyExitConfig

    def __init__(self, target: TargetProtocol, config: EarlyExitConfig, costs: Costs, use: Use) -> None:
        """Build the path.

        Raises:
            UserError: for an exit that is not before the last layer.
        """
        super().__init__(target, config, costs, use)
        layers = len(target.full.layers)
        path = sparse_path(target, SkipSet.from_layer(layers, config.exit_of(layers)))
        self.typical = settled(target, path, reuse=use.reuse)
