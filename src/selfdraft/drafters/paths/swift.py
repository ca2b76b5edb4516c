"""SWIFT (Xia et al. 2025, arXiv 2410.06916): search for the skip set while decoding, on the text decoded so far.

Each step of the search scores one candidate skip set by its *matchness*: the share of a window's tokens that one
parallel forward of the sparse model predicts. Options default to the paper's procedure; each further option corrects
one weakness of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

from selfdraft.core.costs import Costs
from selfdraft.core.lengths import best_speedup
from selfdraft.core.options import choice_name, option
from selfdraft.core.sampling import most_likely
from selfdraft.core.search import SkipSearch
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.paths.base import PathConfig, PathPolicy, Use
from selfdraft.drafters.step import Context
from selfdraft.models.engines.choice import settled
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.sparse import sparse_path


@dataclass
class SwiftConfig(PathConfig):
    """The paper's options, then, from `score_initial` on, our repairs of the published procedure.

    The search ends by `enough`, `tolerance` or `max_candidates`, whichever comes first. If the drafter is `warm`, it
    goes on over prompts, as in the paper's code. Then, with compiled layers, the path that it ends with is compiled
    before the next prompt.
    """

    name: str = choice_name("swift")
    sparsity: float = option(
        0.45,
        at_least=0.0,
        below=1.0,
        help="share of the sublayers (attentions and MLPs) to skip; the first and last layer are kept. More makes "
        "drafts cheaper and worse",
    )
    context_window: int = option(
        50, at_least=1, help="number of generated tokens that a candidate is scored on; the search begins after as many"
    )
    interval: int = option(
        1,
        at_least=1,
        help="number of decoding steps between two candidates; more search slower and disturb decoding less",
    )
    bayes_interval: int = option(
        25, at_least=2, help="one candidate in this many comes from a Gaussian process; the others are random"
    )
    enough: float = option(
        0.95,
        at_least=0.0,
        help="the search ends at this matchness: the share of tokens that the path predicts as the full model does",
    )
    tolerance: int = option(300, at_least=1, help="the search ends after this many candidates without an improvement")
    max_candidates: int = option(1000, at_least=0, help="the search ends after this many candidates in all")
    score_initial: bool = option(
        False, help="not in the paper: also score the first, evenly spread set; otherwise any candidate replaces it"
    )
    recent_window: bool = option(
        False, help="not in the paper: score on the latest generated tokens, not on the first ones"
    )
    rescore_incumbent: bool = option(
        False, help="not in the paper: before a set is replaced, score it on the same tokens as the new one"
    )
    cost_aware: bool = option(
        False, help="not in the paper: look for the highest predicted speedup, not for the highest matchness"
    )
    neighbours: bool = option(
        False, help="not in the paper: each candidate is the best set so far with one or two sublayers exchanged"
    )


@dataclass
class State:
    """A search, and its progress.

    Attributes:
        path: the sparse path of the best skip set found.
        steps: decoding steps since the search began.
        forwards: forwards of sparse paths that scored candidates.
        matchness: of the skip set scored last.
        fresh: whether the incumbent's score comes from the present text.
        done: whether the search has ended.
    """

    search: SkipSearch
    path: Path
    steps: int = 0
    forwards: int = 0
    matchness: float = 0.0
    fresh: bool = True
    done: bool = False


class Swift(PathPolicy):
    """Drafts through the best skip set found so far."""

    Config = SwiftConfig
    tree_parallel: ClassVar[bool] = False  # reads the whole cache
    config: SwiftConfig

    def __init__(self, target: TargetProtocol, config: SwiftConfig, costs: Costs, use: Use) -> None:
        super().__init__(target, config, costs, use)
        self.layers = len(target.full.layers)
        self.typical = sparse_path(target, SkipSet.spread(self.layers, config.sparsity))
        if config.cost_aware:
            every = range(self.layers)
            self._full = costs.full()
            without = [
                costs.of(sparse_path(target, SkipSet.of(self.layers, *s)))(1) for s in ((every, ()), ((), every))
            ]
            self._saves = [max(self._full(1) - seconds, 0.0) / self.layers for seconds in without]
        self._shared, self._settled = self._new_state(), False
        self.states: WeakKeyDictionary[Context, State] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin a search or, if the drafter is warm, continue the shared one."""
        state = self._shared if self.use.warm else self._new_state()
        state.fresh = not state.search.history
        self.states[context] = state

    def path(self, context: Context) -> Path:
        """Return the path of the present incumbent, which another request may have found."""
        return self.states[context].path

    def explore(self, context: Context) -> None:
        """Score a candidate, if one is due."""
        state = self.states[context]
        state.steps += 1
        if state.done or len(context.tokens) - context.prompt_length < self.config.context_window:
            return
        if state.steps % self.config.interval == 0:
            self._search(context, state)

    def settle(self) -> bool:
        """Compile the path that the shared search has ended with, once, if the target's layers are compiled.

        The search of one prompt never gets as far: its path goes with the prompt, before compiling would have paid.
        """
        if self._settled or not (self.use.warm and self._shared.done and self.target.compiled):
            return False
        self._settled, path = True, self._shared.path
        self.typical = settled(self.target, path, reuse=self.use.reuse, why="SWIFT's search has ended: ")
        return True

    def _search(self, context: Context, state: State) -> None:
        """Score one candidate, or the first set; score the incumbent again if `rescore_incumbent` asks for it."""
        config, search = self.config, state.search
        if not search.is_possible or len(search.history) >= config.max_candidates:
            state.done = True
            return
        if config.score_initial and not search.history:
            self._score_is(state, search.best, self._score(context, state, search.best))
            return
        candidate = search.candidate(context.rng)
        score = self._score(context, state, candidate)
        found = state.matchness
        if config.rescore_incumbent and search.history and (score > search.score or not state.fresh):
            search.score, state.fresh = self._score(context, state, search.best), True
        state.matchness = found
        self._score_is(state, candidate, score)

    def _score_is(self, state: State, candidate: SkipSet, score: float) -> None:
        if state.search.tell(candidate, score):
            state.path = sparse_path(self.target, candidate)
            state.done = state.matchness >= self.config.enough
        state.done |= state.search.stale > self.config.tolerance

    def _score(self, context: Context, state: State, skip: SkipSet) -> float:
        """Return the matchness on a window of the generated tokens or, if `cost_aware`, the speedup it predicts."""
        window, tokens = self.config.context_window, context.tokens
        first = len(tokens) - window if self.config.recent_window else context.prompt_length
        state.matchness = matchness(self.target, skip, context.row, tokens, first, window)
        state.forwards += 1
        if not self.config.cost_aware:
            return state.matchness
        seconds = self._full(1) - sum(
            n * s for n, s in zip((len(skip.attention), len(skip.mlp)), self._saves, strict=True)
        )
        return best_speedup(state.matchness, max(seconds, 0.0), self._full, self.use.longest)

    def _new_state(self) -> State:
        config = self.config
        search = SkipSearch(
            self.layers, config.sparsity, bayes_interval=config.bayes_interval, neighbours=config.neighbours
        )
        return State(search, self.typical)


def matchness(target: TargetProtocol, skip: SkipSet, row: int, tokens: Sequence[int], first: int, count: int) -> float:
    """Return the share of the `count` committed tokens from `first` on that the model without `skip` predicts.

    One forward predicts each token from the true text before it.
    """
    logits = target.replay(sparse_path(target, skip), row, first - 1, tokens[first - 1 : first - 1 + count])
    predicted = most_likely(logits).tolist()
    return sum(p == t for p, t in zip(predicted, tokens[first : first + count], strict=True)) / count
