"""F2: one file a drafter. Every losslessness test runs over `DRAFTERS`."""

from selfdraft.drafters.base import Drafter
from selfdraft.drafters.early_exit import EarlyExit
from selfdraft.drafters.jacobi import Jacobi
from selfdraft.drafters.layer_skip import LayerSkip
from selfdraft.drafters.none import NoDrafter
from selfdraft.drafters.prompt_lookup import PromptLookup
from selfdraft.drafters.swift import Swift

DRAFTERS: dict[str, type[Drafter]] = {
    "none": NoDrafter,
    "jacobi": Jacobi,
    "layer_skip": LayerSkip,
    "early_exit": EarlyExit,
    "swift": Swift,
    "prompt_lookup": PromptLookup,
}

__all__ = ["DRAFTERS", "Drafter"]
