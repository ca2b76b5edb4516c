"""Sparse keys: drafting attends to the first tokens, the latest ones, and those with the highest attention scores.

Sink and window as in StreamingLLM (Xiao et al. 2023, arXiv 2309.17453), top-k of the attention scores as in MagicDec
and SparseSpec. All layers may run: drafting saves the attention over a long prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context
from selfdraft.drafters.sparse import Memory, SparseConfig, SparseDrafter
from selfdraft.models.selection import Selection
from selfdraft.models.sparse import Path
from selfdraft.models.target import Target

_EMPTY = TokenTree.empty()


@dataclass
class SparseKVConfig(SparseConfig):
    """Keep the `sink` first and `recent` latest tokens, and the `top_k` others that got the most attention.

    `refresh`: number of steps after which the `top_k` are chosen anew, by the attention of a first draft token that
    sees all keys. `sparsity`: also skip an even share of the sublayers. Drafting attends to the whole of a text that is
    no longer than these numbers of tokens together.
    """

    name: str = "sparse_kv"
    sink: int = option(4, at_least=0)
    recent: int = option(128, at_least=1)
    top_k: int = option(0, at_least=0)
    refresh: int = option(8, at_least=1)
    sparsity: float = option(0.0, at_least=0.0, below=1.0)


@dataclass
class Chosen:
    """The positions chosen for one request by their attention scores, and the steps since they were chosen."""

    positions: Tensor
    age: int


class SparseKV(SparseDrafter):
    """Drafts with a selection of the keys."""

    Config = SparseKVConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    config: SparseKVConfig

    def __init__(self, target: Target, config: SparseKVConfig) -> None:
        """Build the path, and its copy that records attention scores.

        Raises:
            UserError: for `top_k` in a model family whose attention cannot be observed.
        """
        super().__init__(target, config)
        self.use(SkipSet.spread(len(target.full.layers), config.sparsity))
        if config.top_k:
            target.scoring(self.path)
        self._keys: Selection | None = None

    def start(self, context: Context) -> None:
        """Begin with nothing chosen."""
        super().start(context)
        context.memory.own = Chosen(torch.empty(0, dtype=torch.long), self.config.refresh)

    def forward(
        self,
        path: Path,
        contexts: Sequence[Context],
        depth: int,
        tokens: Sequence[int],
        keep: Sequence[list[Tensor]] | None,
    ) -> list[Tensor]:
        """Run one sparse forward with selected keys.

        The keys are gathered at depth 0. A row whose keys are due to be chosen anew first sees all keys there.
        """
        logits: dict[int, Tensor] = {}
        for i, context in enumerate(contexts):
            if depth == 0 and self._is_long(context):
                due = self._comes_due(context)
                if due:
                    logits[i] = self._look(path, context, tokens[i])
                self._gather(context, drafted=int(due))
        for long in (False, True):
            rest = [i for i, c in enumerate(contexts) if self._is_long(c) == long and i not in logits]
            if rest:
                rows, roots = [contexts[i].row for i in rest], [tokens[i] for i in rest]
                keys = self._keys if long else None
                found = self.target.draft_forward(path, rows, depth, roots, [_EMPTY] * len(rest), keys=keys)
                logits |= zip(rest, found, strict=True)
        return [logits[i] for i in range(len(contexts))]

    def _is_long(self, context: Context) -> bool:
        return len(context.tokens) - 1 > self.config.sink + self.config.recent + self.config.top_k

    def _comes_due(self, context: Context) -> bool:
        """Count a step, and return whether the keys are to be chosen anew in it."""
        chosen: Chosen = context.memory.own
        chosen.age += 1
        return self.config.top_k > 0 and chosen.age > self.config.refresh

    def _look(self, path: Path, context: Context, token: int) -> Tensor:
        """Return the logits of one token that sees all keys, and choose positions by its attention scores."""
        watched, scores = self.target.scoring(path)
        logits = self.target.draft_forward(watched, [context.row], 0, [token], [_EMPTY])[0]
        memory: Memory = context.memory
        first, end = self.config.sink, len(context.tokens) - 1 - self.config.recent
        memory.own = Chosen(scores.best(self.config.top_k, first, end), 0)
        return logits

    def _gather(self, context: Context, drafted: int) -> None:
        """Gather the kept keys of a request, and those of the `drafted` tokens (0 or 1) that have seen all keys."""
        target, config = self.target, self.config
        if self._keys is None or self._keys.cache.rows != target.cache.rows:
            self._keys = target.selection()
        end = target.cache.lengths[context.row]
        kept = torch.zeros(end, dtype=torch.bool)
        kept[: config.sink] = kept[end - config.recent :] = True
        kept[context.memory.own.positions] = True
        self._keys.choose(context.row, target.cache, kept.nonzero().flatten(), drafted)
