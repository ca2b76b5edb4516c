"""Prompt lookup (Saxena 2023): draft the tokens that followed the last n-gram earlier in the text.

The draft length is chosen by a rule of ours: as many tokens as pay at this machine's costs, given how often such tokens
were right.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import takewhile
from weakref import WeakKeyDictionary

from selfdraft.core.costs import CostCurve, Costs
from selfdraft.core.growth import best_size
from selfdraft.core.ngrams import NgramIndex, refuse_sizes
from selfdraft.core.options import choice_name, option
from selfdraft.core.rates import FADING, Rate, lookup_prior
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import COSTS, COSTS_HELP, Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.protocol import TargetProtocol

WEIGHT = 6.0  # number of trials that a prior counts like
RIVAL = 0.2  # each earlier candidate multiplies the prior probability of a candidate's first token by this


@dataclass
class PromptLookupConfig(DrafterConfig):
    """Which matches are looked up, and how much of what followed them is drafted.

    With ``costs=measured`` the chances that tokens are right are learned in the request's own text.
    """

    name: str = choice_name("prompt_lookup")
    ngram_max: int = option(3, at_least=1, help="tokens of the longest n-gram looked up, which is tried first")
    ngram_min: int = option(1, at_least=1, help="tokens of the shortest n-gram looked up")
    draft_length: int = option(10, at_least=1, help="maximum number of drafted tokens of a continuation")
    candidates: int = option(
        1,
        at_least=1,
        help="maximum number of continuations drafted side by side, each with a different first token",
    )
    costs: str = option("measured", choices=COSTS, help=COSTS_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_sizes(self.ngram_min, self.ngram_max)


class Chances:
    """How often continuations of one kind of match are right: the first token, and each token after a right one."""

    def __init__(self, matched: int, rank: int) -> None:
        """Begin with the prior of a kind: how many tokens matched, and how many candidates come before it."""
        prior = lookup_prior(matched) * RIVAL**rank
        self.first, self.later = Rate(prior, WEIGHT), Rate(lookup_prior(matched), WEIGHT)

    def reached(self, length: int) -> list[float]:
        """Return, for each of `length` tokens, the chance that it and all before it are right."""
        return [self.first() * self.later() ** depth for depth in range(length)]

    def learn(self, accepted: int, drafted: int) -> None:
        """Count a continuation of `drafted` tokens whose first `accepted` ones were right."""
        self.first.learn(min(accepted, 1), 1)
        if accepted and drafted > 1:
            self.later.learn(accepted - 1, drafted - 1)

    def fade(self) -> None:
        """Forget a little, so that estimates follow the text."""
        self.first.fade(FADING)
        self.later.fade(FADING)


Kind = tuple[int, int]  # of a candidate: how many tokens matched, and how many candidates come before it (rank)


@dataclass
class State:
    """The drafter's state for one request: the text's index; by kind, the chances and the last continuations found."""

    index: NgramIndex
    chances: dict[Kind, Chances] = field(default_factory=dict)
    found: dict[Kind, list[int]] = field(default_factory=dict)


class PromptLookup(Drafter):
    """Drafts what followed the latest occurrence of the longest n-gram that matches."""

    Config = PromptLookupConfig
    config: PromptLookupConfig

    def __init__(self, target: TargetProtocol, config: PromptLookupConfig, costs: Costs) -> None:
        super().__init__(target, config, costs)
        self.curve = costs.full() if config.costs == "measured" else None
        self.states: WeakKeyDictionary[Context, State] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin with an empty index; the prompt enters it with the first proposal."""
        self.states[context] = State(NgramIndex(self.config.ngram_min, self.config.ngram_max))

    def propose(self, context: Context) -> Draft:
        """Return one chain per candidate, or nothing if no n-gram matches or nothing pays."""
        state = self.states[context]
        state.index.extend(context.tokens[len(state.index) :])
        found = state.index.matches(min(self.config.draft_length, context.room), self.config.candidates)
        state.found = {(matched, rank): tokens for rank, (matched, tokens) in enumerate(found)}
        branches = list(state.found.values())
        if self.curve is not None:
            branches = self._paying(state, self.curve.shared_by(context.rows))
        return Draft(TokenTree.merged(branches), source="lookup")

    def observe(self, context: Context, step: Step) -> None:
        """Learn how many tokens of the continuations found were right, drafted or not."""
        state = self.states[context]
        for chances in state.chances.values():
            chances.fade()
        for kind, chances in state.chances.items():
            known = list(zip(state.found.get(kind, ()), step.emitted, strict=False))  # later tokens are unknown
            if known:
                chances.learn(len(list(takewhile(lambda pair: pair[0] == pair[1], known))), len(known))

    def _paying(self, state: State, costs: CostCurve) -> list[list[int]]:
        """Return, for every candidate, the first tokens that pay."""
        nodes: list[tuple[float, Kind]] = []
        for kind, tokens in state.found.items():
            chances = state.chances.setdefault(kind, Chances(*kind))
            nodes += [(chance, kind) for chance in chances.reached(len(tokens))]
        nodes.sort(key=lambda node: -node[0])  # stable: a candidate's tokens stay in order
        paying = Counter(kind for _, kind in nodes[: best_size([chance for chance, _ in nodes], costs)])
        return [tokens[: paying[kind]] for kind, tokens in state.found.items()]
