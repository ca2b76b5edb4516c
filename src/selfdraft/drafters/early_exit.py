"""Early exit: the first layers, the final norm and the head draft (LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710).

The exit's layers are the full model's own, so verification goes on from the keys and hidden states that drafting left.
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
    """Draft with the first `exit_layer` layers, half of them if it is not given.

    With `reuse`, verification runs only the other layers. The last drafted token has not been through the first ones
    yet: `bonus=keep` runs them on it, which gains a token where all drafts stand; `forgo` leaves the token out; `auto`
    decides at every step by this machine's costs. `adapter`: the folder of weights that task=finetune made for a path
    of leading layers and trained ones; the exit is then the adapter's.
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
            UserError: for an exit that is no layer before the last; for an adapter that cannot be used.
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
