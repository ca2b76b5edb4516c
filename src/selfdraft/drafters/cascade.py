"""Cascade (ours): draft by lookups, and ask a sparse path where the lookups are unsure and asking pays.

The lookups are the pool's: one tree from several sources. The sparse path is asked for tokens at the root or another
node of that tree, wherever this raises the expected tokens per second most. If it raises them nowhere, the path is not
asked; if no draft raises them, nothing is drafted.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfdraft.core.errors import UserError
from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.pool import TRAINED, Pool, PoolConfig
from selfdraft.drafters.sparse_source import SparseSource
from selfdraft.models.adapter import Adapter

UNTRAINED = 0.7  # prior probability that the target without a few sublayers knows the next token


@dataclass
class CascadeConfig(PoolConfig):
    """The pool's options. The path, set by layer_skip's options or `adapter`, drafts up to `sparse_length` tokens."""

    name: str = "cascade"
    sparsity: float = option(0.2, at_least=0.0, below=1.0)
    skip_attention: list[int] | None = option(None, at_least=0)
    skip_mlp: list[int] | None = option(None, at_least=0)
    sparse_length: int = option(4, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is not None and not (self.skip_attention is None and self.skip_mlp is None):
            raise UserError(
                "drafter.adapter: it drafts through what it was trained for; leave out skip_attention, skip_mlp"
            )


class Cascade(Pool):
    """Drafts by lookups, and by a sparse path where that raises the expected tokens per second."""

    Config = CascadeConfig
    config: CascadeConfig

    def _sparse_source(self) -> SparseSource:
        """Return a path of the target's own layers, or the adapter's path, as a source.

        Raises:
            UserError: for layers that the model does not have.
        """
        config, target = self.config, self.target
        if config.adapter is None:
            layers = len(target.full.layers)
            skip = SkipSet.named_or_spread(layers, config.skip_attention, config.skip_mlp, config.sparsity)
            path, prior = target.sparse_path(skip), UNTRAINED
        else:
            path, prior = target.adapted_path(Adapter.read(config.adapter)), TRAINED
        longest = config.sparse_length
        return SparseSource(target, path, self.costs, guesses=self.best, prior=prior, longest=longest)
