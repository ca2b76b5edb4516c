"""Prompt lookup (Saxena 2023): what followed the last n-gram earlier in the text is the draft."""

from __future__ import annotations

from dataclasses import dataclass

from selfdraft.core.ngrams import NgramIndex, refuse_sizes
from selfdraft.core.options import option
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step

FIRST_LENGTH = 3  # of an adaptive draft, before anything is known about the text


@dataclass
class PromptLookupConfig(DrafterConfig):
    """Match n-grams of `ngram_max` down to `ngram_min` tokens; draft up to `draft_length`.

    `adaptive`: begin short, double the length after a draft that was accepted whole, and fall back to one more than
    was accepted after any other. Where a verified token costs much, as on most CPUs, this is what makes lookup pay.
    """

    name: str = "prompt_lookup"
    ngram_max: int = option(3, at_least=1)
    ngram_min: int = option(1, at_least=1)
    draft_length: int = option(10, at_least=1)
    adaptive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_sizes(self.ngram_min, self.ngram_max)


@dataclass
class Memory:
    """The text so far, indexed, and how long the next draft may be."""

    index: NgramIndex
    length: int


class PromptLookup(Drafter):
    """Longest n-gram first, and of its occurrences the latest."""

    Config = PromptLookupConfig
    config: PromptLookupConfig

    def start(self, context: Context) -> None:
        """An empty index; the prompt enters it with the first proposal."""
        index = NgramIndex(self.config.ngram_min, self.config.ngram_max)
        context.memory = Memory(index, FIRST_LENGTH if self.config.adaptive else self.config.draft_length)

    def propose(self, context: Context) -> Draft:
        """One chain, or nothing where no n-gram matches."""
        memory: Memory = context.memory
        memory.index.extend(context.tokens[len(memory.index) :])
        length = min(memory.length, self.config.draft_length, context.room)
        return Draft(TokenTree.chain(memory.index.continuation(length)), source="lookup")

    def observe(self, context: Context, step: Step) -> None:
        """Adapt the length to what the draft was worth."""
        drafted, accepted = len(step.draft.tree), len(step.path)
        if self.config.adaptive and drafted:
            memory: Memory = context.memory
            memory.length = 2 * memory.length if accepted == drafted else accepted + 1
            memory.length = min(memory.length, self.config.draft_length)
