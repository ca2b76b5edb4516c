"""F2: one file a drafter. Every losslessness test runs over `DRAFTERS`."""

from selfdraft.drafters.base import Drafter
from selfdraft.drafters.cascade import Cascade
from selfdraft.drafters.early_exit import EarlyExit
from selfdraft.drafters.jacobi import Jacobi
from selfdraft.drafters.layer_skip import LayerSkip
from selfdraft.drafters.none import NoDrafter
from selfdraft.drafters.prompt_lookup import PromptLookup

DRAFTERS: dict[str, type[Drafter]] = {
    "none": NoDrafter,
    "jacobi": Jacobi,
    "layer_skip": LayerSkip,
    "early_exit": EarlyExit,
    "prompt_lookup": PromptLookup,
    "cascade": Cascade,
}

__all__ = ["DRAFTERS", "Drafter"]
