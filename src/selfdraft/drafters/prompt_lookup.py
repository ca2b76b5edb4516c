"""Prompt lookup (Saxena 2023): what followed the last n-gram earlier in the text is the draft.

How much of that is drafted is ours: as many tokens as pay at this machine's costs, by how often such tokens were right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from selfdraft.core.gains import FADING, Rate, lookup_prior
from selfdraft.core.growth import best_size
from selfdraft.core.ngrams import NgramIndex, refuse_sizes
from selfdraft.core.options import option
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import COSTS, Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.target import Target

WEIGHT = 6.0  # trials that a prior counts for


@dataclass
class PromptLookupConfig(DrafterConfig):
    """Match n-grams of `ngram_max` down to `ngram_min` tokens; draft up to `draft_length`.

    `costs`: as many of them as pay by the measured cost of a forward and by chances learned in this text; or `flat`:
    all of them.
    """

    name: str = "prompt_lookup"
    ngram_max: int = option(3, at_least=1)
    ngram_min: int = option(1, at_least=1)
    draft_length: int = option(10, at_least=1)
    costs: str = option("measured", choices=COSTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_sizes(self.ngram_min, self.ngram_max)


class Chances:
    """How often what followed matches of one length is right: its first token, and each after one that was."""

    def __init__(self, matched: int) -> None:
        prior = lookup_prior(matched)
        self.first, self.later = Rate(prior, WEIGHT), Rate(prior, WEIGHT)

    def reached(self, length: int) -> list[float]:
        """By token, the chance that it and all before it are right."""
        return [self.first() * self.later() ** depth for depth in range(length)]

    def learn(self, accepted: int, drafted: int) -> None:
        """What became of a draft."""
        self.first.learn(min(accepted, 1), 1)
        if accepted and drafted > 1:
            self.later.learn(accepted - 1, drafted - 1)

    def fade(self) -> None:
        """Forget a little: what was wrong too often is tried again one day."""
        self.first.fade(FADING)
        self.later.fade(FADING)


@dataclass
class Memory:
    """The text so far, indexed; what its lookups were worth, by length of the match; and that of the last draft."""

    index: NgramIndex
    chances: dict[int, Chances] = field(default_factory=dict)
    matched: int = 0


class PromptLookup(Drafter):
    """Longest n-gram first, and of its occurrences the latest."""

    Config = PromptLookupConfig
    config: PromptLookupConfig

    def __init__(self, target: Target, config: PromptLookupConfig) -> None:
        super().__init__(target, config)
        self.costs = target.costs if config.costs == "measured" else None

    def start(self, context: Context) -> None:
        """An empty index; the prompt enters it with the first proposal."""
        context.memory = Memory(NgramIndex(self.config.ngram_min, self.config.ngram_max))

    def propose(self, context: Context) -> Draft:
        """One chain, or nothing where no n-gram matches or nothing pays."""
        memory: Memory = context.memory
        memory.index.extend(context.tokens[len(memory.index) :])
        memory.matched, found = memory.index.match(min(self.config.draft_length, context.room))
        if found and self.costs is not None:
            chances = memory.chances.setdefault(memory.matched, Chances(memory.matched))
            found = found[: best_size(chances.reached(len(found)), self.costs.shared_by(context.rows))]
        return Draft(TokenTree.chain(found), source="lookup")

    def observe(self, context: Context, step: Step) -> None:
        """Learn what the draft was worth."""
        memory: Memory = context.memory
        for chances in memory.chances.values():
            chances.fade()
        if self.costs is not None and len(step.draft.tree):
            memory.chances[memory.matched].learn(len(step.path), len(step.draft.tree))
