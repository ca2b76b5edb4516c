"""Prompt lookup (Saxena 2023): draft the tokens that followed the last n-gram earlier in the text.

The draft length is chosen by a rule of ours: as many tokens as pay at this machine's costs, given how often such tokens
were right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from selfdraft.core.chains import Chains, lookup_chances
from selfdraft.core.costs import Costs
from selfdraft.core.ngrams import NgramIndex, refuse_sizes
from selfdraft.core.options import choice_name, option
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import COSTS, COSTS_HELP, Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.forward.protocol import TargetProtocol


@dataclass
class PromptLookupConfig(DrafterConfig):
    """Which matches are looked up, and how much of what followed them is drafted.

    With ``costs=measured`` the chances that tokens are right are learned in the request's own text.
    """

    name: str = choice_name("prompt_lookup")
    ngram_max: int = option(
        3,
        at_least=1,
        help="number of last tokens that are looked up in the earlier text at first; shorter matches are tried if "
        "there is none",
    )
    ngram_min: int = option(
        1,
        at_least=1,
        help="number of tokens of the shortest match that is drafted from; higher values draft less, but surer",
    )
    draft_length: int = option(
        10,
        at_least=1,
        help="maximum number of drafted tokens of a continuation; more pays where answers copy long parts of the text",
    )
    candidates: int = option(
        1,
        at_least=1,
        help="maximum number of continuations drafted side by side, each with a different first token",
    )
    costs: str = option("measured", choices=COSTS, help=COSTS_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_sizes(self.ngram_min, self.ngram_max)


Kind = tuple[int, int]  # of a candidate: how many tokens matched, and how many candidates come before it (rank)


@dataclass
class State:
    """The drafter's state for one request: the text's index, and the continuations of its matches."""

    index: NgramIndex
    chains: Chains[Kind] = field(default_factory=lambda: Chains(lambda kind: lookup_chances(*kind)))


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
        state.chains.found = {(matched, rank): tokens for rank, (matched, tokens) in enumerate(found)}
        if self.curve is None:
            branches = list(state.chains.found.values())
        else:
            branches = state.chains.paying(self.curve.shared_by(context.rows))
        return Draft(TokenTree.merged(branches), source="lookup")

    def observe(self, context: Context, step: Step) -> None:
        """Learn how many tokens of the continuations found were right, drafted or not."""
        self.states[context].chains.learn(step.emitted)
