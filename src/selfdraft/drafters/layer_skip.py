"""Layer skipping, panel (b): the model without some of its sublayers drafts token by token.

Draft & Verify (Zhang et al. 2023, arXiv 2309.08168), with a fixed skip set.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.sparse import BONUS, SparseConfig, SparseDrafter
from selfdraft.models.target import Target


@dataclass
class LayerSkipConfig(SparseConfig):
    """Skip an even share `sparsity` of the sublayers, or exactly those named in `skip_attention` and `skip_mlp`.

    With `reuse`, verification continues from what the layers before the first skipped sublayer computed while drafting;
    for that and `bonus` see `EarlyExitConfig`. `adapter`: a folder of weights that task=finetune made for a skip set;
    the adapter then sets the skip set.
    """

    name: str = "layer_skip"
    sparsity: float = option(0.2, at_least=0.0, below=1.0)
    skip_attention: list[int] | None = option(None, at_least=0)
    skip_mlp: list[int] | None = option(None, at_least=0)
    adapter: str | None = None
    reuse: bool = False
    bonus: str = option("auto", choices=BONUS)


class LayerSkip(SparseDrafter):
    """Drafts through a sparse path of the target that never changes."""

    Config = LayerSkipConfig
    config: LayerSkipConfig

    def __init__(self, target: Target, config: LayerSkipConfig) -> None:
        """Build the sparse path.

        Raises:
            UserError: for layers that the model does not have; for an adapter that cannot be used.
        """
        self.reuse, self.bonus = config.reuse, config.bonus
        super().__init__(target, config)
        if config.adapter is not None:
            self.use_adapter(config.adapter, ("sparsity", "skip_attention", "skip_mlp"))
            return
        layers = len(target.full.layers)
        self.use(SkipSet.named_or_spread(layers, config.skip_attention, config.skip_mlp, config.sparsity))
