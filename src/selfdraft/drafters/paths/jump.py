"""A jump into the model: the first layers are not run, their result is predicted (trained by finetune=jump)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.core.options import choice_name
from selfdraft.drafters.paths.base import Use
from selfdraft.drafters.paths.trained import Trained, TrainedConfig
from selfdraft.models.jump import JumpPath
from selfdraft.models.protocol import TargetProtocol


@dataclass
class JumpConfig(TrainedConfig):
    """Which trained jump is used."""

    name: str = choice_name("jump")


class Jump(Trained):
    """Uses one trained jump for all requests."""

    Config = JumpConfig
    tensor_parallel: ClassVar[bool] = False  # has matrices of its own

    def __init__(self, target: TargetProtocol, config: JumpConfig, costs: Costs, use: Use) -> None:
        """Read the adapter, and build its path.

        Raises:
            UserError: the adapter cannot be used with this model, or is no jump.
        """
        super().__init__(target, config, costs, use)
        if not isinstance(self.typical, JumpPath):
            raise UserError(
                f"drafter.path.adapter={config.adapter}: finetune=jump did not train it; use drafter/path=trained"
            )
