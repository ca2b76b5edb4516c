"""A jump into the model: the first layers are not run, their result is predicted (trained by finetune=jump)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.core.options import choice_name, option
from selfdraft.drafters.paths.base import FixedPath, PathConfig, Use
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.jump import JumpPath
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.shipped import Shipped

TRAIN = "train one by task=finetune finetune=jump, and name its folder"


@dataclass
class JumpConfig(PathConfig):
    """Which trained jump is used."""

    name: str = choice_name("jump")
    adapter: str | None = option(
        None,
        help="folder that finetune=jump wrote; null: the weights that come with SelfDraft, if there are some for "
        "this model",
    )


class Jump(FixedPath):
    """Uses one trained jump for all requests."""

    Config = JumpConfig
    tensor_parallel: ClassVar[bool] = False  # has matrices of its own
    prior: ClassVar[float] = 0.4

    def __init__(self, target: TargetProtocol, config: JumpConfig, costs: Costs, use: Use) -> None:
        """Read the weights, and build the path.

        Raises:
            UserError: the weights cannot be used with this model, or are no jump; or none are given, and none come with
                SelfDraft for this model.
        """
        super().__init__(target, config, costs, use)
        shipped = Shipped.read("jump") if config.adapter is None else None
        if config.adapter is None and (shipped is None or not shipped.fits(target)):
            raise UserError(f"drafter.path.adapter: no trained jump comes with SelfDraft for this model; {TRAIN}")
        folder = config.adapter if shipped is None else str(shipped.folder)
        self.said = None if shipped is None else shipped.line
        assert folder is not None
        self.folder = folder
        self.typical = adapted_path(target, Adapter.read(folder, "drafter.path.adapter"), reuse=use.reuse)
        if not isinstance(self.typical, JumpPath):
            raise UserError(
                f"drafter.path.adapter={config.adapter}: finetune=jump did not train it; use drafter/path=trained"
            )
