"""Floor 2: the drafters, one file each. Every losslessness test runs over `DRAFTERS`."""

from selfdraft.drafters.base import Drafter
from selfdraft.drafters.cascade import Cascade
from selfdraft.drafters.clasp import Clasp
from selfdraft.drafters.dynamic_exit import DynamicExit
from selfdraft.drafters.early_exit import EarlyExit
from selfdraft.drafters.jacobi import Jacobi
from selfdraft.drafters.layer_skip import LayerSkip
from selfdraft.drafters.lookahead import Lookahead
from selfdraft.drafters.none import NoDrafter
from selfdraft.drafters.pool import Pool
from selfdraft.drafters.prompt_lookup import PromptLookup
from selfdraft.drafters.pseudo_tokens import PseudoTokensDrafter
from selfdraft.drafters.recycling import Recycling
from selfdraft.drafters.sparse_jacobi import SparseJacobi
from selfdraft.drafters.sparse_kv import SparseKV
from selfdraft.drafters.suffix import Suffix
from selfdraft.drafters.swift import Swift
from selfdraft.drafters.width_skip import WidthSkip

DRAFTERS: dict[str, type[Drafter]] = {
    "none": NoDrafter,
    "jacobi": Jacobi,
    "layer_skip": LayerSkip,
    "lookahead": Lookahead,
    "early_exit": EarlyExit,
    "swift": Swift,
    "clasp": Clasp,
    "dynamic_exit": DynamicExit,
    "width_skip": WidthSkip,
    "sparse_kv": SparseKV,
    "sparse_jacobi": SparseJacobi,
    "prompt_lookup": PromptLookup,
    "suffix": Suffix,
    "recycling": Recycling,
    "pool": Pool,
    "cascade": Cascade,
    "pseudo_tokens": PseudoTokensDrafter,
}

__all__ = ["DRAFTERS", "Drafter"]
