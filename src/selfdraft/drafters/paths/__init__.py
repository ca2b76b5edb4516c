"""The path policies, one file each: which part of the model a drafter runs."""

from selfdraft.drafters.paths.base import PathPolicy
from selfdraft.drafters.paths.clasp import Clasp
from selfdraft.drafters.paths.dynamic_exit import DynamicExit
from selfdraft.drafters.paths.early_exit import EarlyExit
from selfdraft.drafters.paths.full import Full
from selfdraft.drafters.paths.jump import Jump
from selfdraft.drafters.paths.layer_skip import LayerSkip
from selfdraft.drafters.paths.low_bit import LowBit
from selfdraft.drafters.paths.sparse_kv import SparseKV
from selfdraft.drafters.paths.swift import Swift
from selfdraft.drafters.paths.trained import Trained
from selfdraft.drafters.paths.width_skip import WidthSkip

PATHS: dict[str, type[PathPolicy]] = {
    "full": Full,
    "layer_skip": LayerSkip,
    "early_exit": EarlyExit,
    "swift": Swift,
    "clasp": Clasp,
    "dynamic_exit": DynamicExit,
    "width_skip": WidthSkip,
    "sparse_kv": SparseKV,
    "low_bit": LowBit,
    "trained": Trained,
    "jump": Jump,
}

__all__ = ["PATHS", "PathPolicy"]
