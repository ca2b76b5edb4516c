"""F2: one file a drafter. Every losslessness test runs over `DRAFTERS`."""

from selfdraft.drafters.base import Drafter
from selfdraft.drafters.jacobi import Jacobi
from selfdraft.drafters.layer_skip import LayerSkip
from selfdraft.drafters.none import NoDrafter
from selfdraft.drafters.pool import Pool
from selfdraft.drafters.prompt_lookup import PromptLookup
from selfdraft.drafters.recycling import Recycling
from selfdraft.drafters.suffix import Suffix

DRAFTERS: dict[str, type[Drafter]] = {
    "none": NoDrafter,
    "jacobi": Jacobi,
    "layer_skip": LayerSkip,
    "pool": Pool,
    "prompt_lookup": PromptLookup,
    "recycling": Recycling,
    "suffix": Suffix,
}

__all__ = ["DRAFTERS", "Drafter"]
