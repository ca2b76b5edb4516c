"""Early exit: the first layers, the final norm and the head draft (LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710).

The exit uses the full model's own layers, so verification continues from the keys and hidden states that drafting left.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfdraft.core.errors import UserError
from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.sparse import BONUS, SparseConfig, SparseDrafter
from selfdraft.models.target import Target


@dataclass
class EarlyExitConfig(SparseConfig):
    """Draft with the first `exit_layer` layers, by default half of them.

    With `reuse`, verification runs only the other layers. The last drafted token has not been through the first layers
    yet: `bonus=keep` runs them on it, which gains a token if the whole draft is accepted; `forgo` leaves the token out;
    `auto` decides at every step by this machine's costs. `adapter`: a folder of weights that task=finetune made for a
    path of leading layers and trained layers; the adapter then sets the exit.
    """

    name: str = "early_exit"
    exit_layer: int | None = option(None, at_least=1)
    adapter: str | None = None
    reuse: bool = True
    bonus: str = option("auto", choices=BONUS)


class EarlyExit(SparseDrafter):
    """Drafts through the first layers."""

    Config = EarlyExitConfig
    config: EarlyExitConfig

    def __init__(self, target: Target, config: EarlyExitConfig) -> None:
        """Build the path.

        Raises:
            UserError: for an exit that is not before the last layer; for an adapter that cannot be used.
        """
        self.reuse, self.bonus = config.reuse, config.bonus
        super().__init__(target, config)
        if config.adapter is not None:
            self.use_adapter(config.adapter, ("exit_layer",))
            return
        layers = len(target.full.layers)
        exit_layer = max(1, layers // 2) if config.exit_layer is None else config.exit_layer
        if exit_layer >= layers > 1:
            raise UserError(
                f"drafter.exit_layer={exit_layer}: this model has {layers} layers; leave before the last, "
                f"at 1 to {layers - 1}"
            )
        self.use(SkipSet.from_layer(layers, exit_layer))
