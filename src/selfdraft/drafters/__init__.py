"""F2: one file a drafter. Every losslessness test runs over `DRAFTERS`."""

from selfdraft.drafters.base import Drafter
from selfdraft.drafters.jacobi import Jacobi
from selfdraft.drafters.layer_skip import LayerSkip
from selfdraft.drafters.lookahead import Lookahead
from selfdraft.drafters.none import NoDrafter
from selfdraft.drafters.prompt_lookup import PromptLookup

DRAFTERS: dict[str, type[Drafter]] = {
    "none": NoDrafter,
    "jacobi": Jacobi,
    "layer_skip": LayerSkip,
    "lookahead": Lookahead,
    "prompt_lookup": PromptLookup,
}

__all__ = ["DRAFTERS", "Drafter"]
