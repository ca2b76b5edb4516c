"""A trained path: what task=finetune made, with its weights in place. The target itself stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from selfdraft.core.costs import Costs
from selfdraft.core.options import choice_name, option
from selfdraft.drafters.paths.base import FixedPath, PathConfig, Use
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import Adapter


@dataclass
class TrainedConfig(PathConfig):
    """Which trained path is used."""

    name: str = choice_name("trained")
    adapter: str = option(
        MISSING, help="folder that task=finetune wrote for a path; it also says which layers the path skips"
    )


class Trained(FixedPath):
    """Uses one adapter for all requests."""

    Config = TrainedConfig
    tensor_parallel: ClassVar[bool] = False  # has matrices of its own
    prior: ClassVar[float] = 0.4

    def __init__(self, target: TargetProtocol, config: TrainedConfig, costs: Costs, use: Use) -> None:
        """Read the adapter, and build its path.

        Raises:
            UserError: the adapter cannot be used with this model.
        """
        super().__init__(target, config, costs, use)
        self.folder = config.adapter
        self.typical = adapted_path(target, Adapter.read(self.folder, "drafter.path.adapter"), reuse=use.reuse)
