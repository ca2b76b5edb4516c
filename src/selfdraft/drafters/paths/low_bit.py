"""The whole model with weights in fewer bits drafts; the model in full precision verifies.

Self-speculation with quantised weights, as in QSpec (Zhao et al. 2024, arXiv 2410.11305) and QuantSpec (Tiwari et al.
2025, arXiv 2502.10424), which also quantise states or keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfdraft.core.costs import Costs
from selfdraft.core.options import choice_name, option
from selfdraft.drafters.paths.base import FixedPath, PathConfig, Use
from selfdraft.models.engines.low_bit import low_bit_path
from selfdraft.models.forward.protocol import TargetProtocol


@dataclass
class LowBitConfig(PathConfig):
    """How many bits the drafting copy has."""

    name: str = choice_name("low_bit")
    bits: int = option(
        4,
        choices=(4, 8),
        help="bits of a weight: 4 (fastest) or 8 (closer to the model); pays with model.engine=compiled",
    )


class LowBit(FixedPath):
    """Uses one copy for all requests."""

    Config = LowBitConfig
    tensor_parallel: ClassVar[bool] = False  # has matrices of its own
    prior: ClassVar[float] = 0.9

    def __init__(self, target: TargetProtocol, config: LowBitConfig, costs: Costs, use: Use) -> None:
        super().__init__(target, config, costs, use)
        self.typical = low_bit_path(target, config.bits)
