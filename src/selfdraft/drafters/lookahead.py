"""Lookahead decoding (Fu et al. 2024, arXiv 2402.02057): Jacobi iterations that keep the n-grams they find.

Every step forwards one tree: n-grams of the pool that begin with the last token, as candidates, and beside them the 2-D
window, as probes, whose predictions are new n-grams. Whatever is accepted, the target's next token comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfdraft.core.lookahead import NgramPool, Window
from selfdraft.core.ngrams import random_prompt_tokens
from selfdraft.core.options import option
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.target import Target


@dataclass
class LookaheadConfig(DrafterConfig):
    """A window of `window` columns (W), n-grams of `ngram` tokens (N), and up to `guesses` of them a step (G).

    `seed_from_prompt`: the pool begins with the prompt's n-grams. `warm`: behind it, one of all requests so far.
    """

    name: str = "lookahead"
    window: int = option(7, at_least=1)
    ngram: int = option(5, at_least=2)
    guesses: int = option(7, at_least=1)
    seed_from_prompt: bool = True
    warm: bool = False


@dataclass
class Memory:
    """Of one request. `root`, `guessed`: of the last proposal, its root and how many nodes stand before the window."""

    pool: NgramPool
    window: Window
    root: int = 0
    guessed: int = 0


class Lookahead(Drafter):
    """The pool's n-grams verify while the window finds new ones, in one forward."""

    Config = LookaheadConfig
    config: LookaheadConfig

    def __init__(self, target: Target, config: LookaheadConfig) -> None:
        super().__init__(target, config)
        self.shared = NgramPool(config.guesses)

    def start(self, context: Context) -> None:
        """Row 0 of the window from random prompt tokens; the pool, which may know something already."""
        pool = NgramPool(self.config.guesses, earlier=self.shared if self.config.warm else None)
        prompt = context.tokens[: context.prompt_length]
        if self.config.seed_from_prompt:
            pool.add_text(prompt, self.config.ngram)
        first = random_prompt_tokens(prompt, self.config.window + self.config.ngram - 3, context.rng)
        context.memory = Memory(pool, Window(first, self.config.ngram))

    def propose(self, context: Context) -> Draft:
        """The guesses first, so that they are what remains where only a chain will do; then the window."""
        memory: Memory = context.memory
        memory.root = context.tokens[-1]
        guesses = TokenTree.merged([tail[: context.room] for tail in memory.pool.after(memory.root)])
        memory.guessed = len(guesses)
        memory.window.narrow(context.room)
        return Draft(guesses.beside(memory.window.tokens, memory.window.parents), "lookahead")

    def observe(self, context: Context, step: Step) -> None:
        """The predictions behind the window's last row are its next row, and complete an n-gram in every column.

        When sampling they are the tokens drawn there. That they share their random numbers with the text to come takes
        nothing from exactness: those numbers alone decide the text, whatever is guessed.
        """
        memory: Memory = context.memory
        if not memory.window.rows or len(step.draft.tree) < memory.guessed + len(memory.window.tokens):
            return  # no window is left, or it was cut off: the target takes chains only
        for ngram in memory.window.advance(memory.root, step.predictions[self._front(memory)]):
            memory.pool.add(ngram)

    def _front(self, memory: Memory) -> Tensor:
        """(w,) where the window's next row stands among the predictions, of which the root's is the first."""
        front = memory.window.front
        return torch.where(front < 0, 0, front + memory.guessed + 1)
