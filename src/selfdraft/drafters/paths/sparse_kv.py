"""Sparse keys: drafting attends to the first tokens, the latest ones, and those with the highest attention scores.

After a long text, attention over all of its keys takes most of a forward's time. A draft needs only a few of them. The
first and latest tokens are kept as in StreamingLLM (Xiao et al. 2023, arXiv 2309.17453), and those with the highest
scores as in MagicDec and SparseSpec. All layers may run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from selfdraft.core.costs import Costs
from selfdraft.core.options import choice_name, option
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.paths.base import PathConfig, PathPolicy, Use
from selfdraft.drafters.step import Context
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.selection import Scores, Selection, scoring, selecting, selection
from selfdraft.models.paths.sparse import sparse_path


@dataclass
class SparseKVConfig(PathConfig):
    """Which tokens a draft attends to.

    Drafting attends to the whole of a text that has at most `sink` + `recent` + `top_k` tokens.
    """

    name: str = choice_name("sparse_kv")
    sink: int = option(4, at_least=0, help="number of first tokens that drafts attend to")
    recent: int = option(
        128,
        at_least=1,
        help="number of latest tokens that drafts attend to; fewer make drafts of long texts cheaper and worse",
    )
    top_k: int = option(
        0, at_least=0, help="number of further tokens that drafts attend to: those that the last token attended to most"
    )
    refresh: int = option(
        8,
        at_least=1,
        help="number of drafts after which the top_k tokens are chosen anew, by the attention of a draft's first "
        "token, which then sees all keys",
    )
    sparsity: float = option(0.0, at_least=0.0, below=1.0, help="share of the sublayers that are also skipped")


@dataclass
class Chosen:
    """The positions chosen for one request by their attention scores, and the drafts since they were chosen."""

    positions: Tensor
    age: int


class SparseKV(PathPolicy):
    """Drafts with a selection of the keys, gathered anew for every draft."""

    Config = SparseKVConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    config: SparseKVConfig

    def __init__(self, target: TargetProtocol, config: SparseKVConfig, costs: Costs, use: Use) -> None:
        """Build the path.

        Raises:
            UserError: for `top_k` in a model family whose attention cannot be observed.
        """
        super().__init__(target, config, costs, use)
        self.typical = sparse_path(target, SkipSet.spread(len(target.full.layers), config.sparsity))
        if config.top_k:
            scoring(target, self.typical)  # refuses what cannot be observed
        self._use_keys(selection(target))
        self.states: WeakKeyDictionary[Context, Chosen] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin with nothing chosen."""
        self.states[context] = Chosen(torch.empty(0, dtype=torch.long), self.config.refresh)

    def path(self, context: Context) -> Path:
        """Gather the request's keys, and return a path that attends to them; the plain path for a short text.

        Keys that are due to be chosen anew are chosen in the draft's first forward, which sees all keys.
        """
        if len(context.tokens) - 1 <= self.config.sink + self.config.recent + self.config.top_k:
            return self.typical
        if self.keys.cache.rows != self.target.cache.rows:
            self._use_keys(selection(self.target))
        chosen = self.states[context]
        chosen.age += 1
        if self.config.top_k and chosen.age > self.config.refresh:
            return selecting(self.typical, self.target, self.keys, partial(self._choose, context))
        self._gather(context, drafted=0)
        return self.selected

    def _use_keys(self, keys: Selection) -> None:
        self.keys, self.selected = keys, selecting(self.typical, self.target, keys)

    def _choose(self, context: Context, scores: Scores, drafted: int) -> None:
        """Choose positions by attention scores, and gather them and the keys of the `drafted` tokens."""
        first, end = self.config.sink, len(context.tokens) - 1 - self.config.recent
        self.states[context] = Chosen(scores.best(self.config.top_k, first, end), 0)
        self._gather(context, drafted)

    def _gather(self, context: Context, drafted: int) -> None:
        """Gather a request's kept keys, and those of the tokens that its draft has already seen with all keys."""
        config, end = self.config, self.target.cache.lengths[context.row]
        kept = torch.zeros(end, dtype=torch.bool)
        kept[: config.sink] = kept[end - config.recent :] = True
        kept[self.states[context].positions] = True
        self.keys.choose(context.row, self.target.cache, kept.nonzero().flatten(), drafted)
