"""Sparse Jacobi (ours): panel (a) run inside panel (b). The sparse model refines a block, the full one verifies it.

A refinement is one parallel forward of the sparse path over the whole block, so N of them cost about as much as N
drafted tokens. In greedy decoding, each fixes at least one more token of the block to what the sparse model itself
would have drafted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.jacobi import Jacobi, JacobiConfig
from selfdraft.models.target import Target

INITS = ("ngram", "previous_tail")
MODES = ("literal",)  # not fused: the full model verifies, but the sparse path refines


@dataclass
class SparseJacobiConfig(JacobiConfig):
    """A block of `window` tokens, refined `refine_steps` times without an even share `sparsity` of the sublayers.

    `init`: the block begins with the tokens that followed an earlier occurrence of the last n-gram (`ngram`), or with
    what the last verification predicted after the accepted tokens (`previous_tail`). An `adapter` has its own skip set.
    """

    name: str = "sparse_jacobi"
    window: int = option(6, at_least=1)
    init: str = option("previous_tail", choices=INITS)
    mode: str = option("literal", choices=MODES)
    sparsity: float = option(0.2, at_least=0.0, below=1.0)


class SparseJacobi(Jacobi):
    """Runs Jacobi in literal mode; a sparse path refines the block."""

    Config: ClassVar = SparseJacobiConfig
    config: SparseJacobiConfig

    def __init__(self, target: Target, config: SparseJacobiConfig) -> None:
        super().__init__(target, config)
        if config.adapter is None:
            self.path = target.sparse_path(SkipSet.spread(len(target.full.layers), config.sparsity))
