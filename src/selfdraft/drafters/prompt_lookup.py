"""Prompt lookup (Saxena 2023): what followed the last n-gram earlier in the text is the draft."""

from __future__ import annotations

from dataclasses import dataclass

from selfdraft.core.errors import UserError
from selfdraft.core.ngrams import NgramIndex
from selfdraft.core.options import option
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig


@dataclass
class PromptLookupConfig(DrafterConfig):
    """Match n-grams of `ngram_max` down to `ngram_min` tokens; draft up to `draft_length`."""

    name: str = "prompt_lookup"
    ngram_max: int = option(3, at_least=1)
    ngram_min: int = option(1, at_least=1)
    draft_length: int = option(10, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ngram_min > self.ngram_max:
            raise UserError(f"drafter.ngram_min={self.ngram_min}: must be at most drafter.ngram_max={self.ngram_max}")


class PromptLookup(Drafter):
    """Longest n-gram first, and of its occurrences the latest."""

    Config = PromptLookupConfig
    config: PromptLookupConfig

    def start(self, context: Context) -> None:
        """Index the prompt."""
        context.memory = NgramIndex(self.config.ngram_min, self.config.ngram_max)

    def propose(self, context: Context) -> Draft:
        """One chain, or nothing where no n-gram matches."""
        index: NgramIndex = context.memory
        index.extend(context.tokens[len(index) :])
        continuation = index.continuation(min(self.config.draft_length, context.room))
        return Draft(TokenTree.chain(continuation), source="lookup")
