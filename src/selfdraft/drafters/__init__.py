"""Floor 2: the drafters. A drafter is a way to propose (one file each, here) and a path (one file each, in paths/).

Every losslessness test runs over pairs of them. `configured` and `drafter_for` are the way in: options by name, then
the drafter for a target.
"""

from selfdraft.drafters.base import Drafter
from selfdraft.drafters.chain import Chain
from selfdraft.drafters.fused_jacobi import FusedJacobi
from selfdraft.drafters.jacobi import Jacobi
from selfdraft.drafters.lookahead import Lookahead
from selfdraft.drafters.none import NoDrafter
from selfdraft.drafters.paths import PATHS
from selfdraft.drafters.pool import Pool
from selfdraft.drafters.prompt_lookup import PromptLookup
from selfdraft.drafters.pseudo_tokens import PseudoTokensDrafter
from selfdraft.drafters.recycling import Recycling
from selfdraft.drafters.suffix import Suffix

PROPOSALS: dict[str, type[Drafter]] = {
    "none": NoDrafter,
    "chain": Chain,
    "jacobi": Jacobi,
    "lookahead": Lookahead,
    "prompt_lookup": PromptLookup,
    "suffix": Suffix,
    "recycling": Recycling,
    "pool": Pool,
    "pseudo_tokens": PseudoTokensDrafter,
    "fused_jacobi": FusedJacobi,
}

__all__ = ["PATHS", "PROPOSALS", "Drafter"]
