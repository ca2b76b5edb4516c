"""Lookahead decoding (Fu et al. 2024, arXiv 2402.02057): Jacobi iterations that keep the n-grams they find.

Every step forwards one tree with two parts. Its candidates are n-grams from the pool that begin with the last token.
Its probes are the window, a block of guesses with its history (see `core.lookahead`). Their predictions complete new
n-grams for the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from selfdraft.core.costs import Costs
from selfdraft.core.lookahead import NgramPool, Window
from selfdraft.core.ngrams import random_prompt_tokens
from selfdraft.core.options import choice_name, option
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.forward.protocol import TargetProtocol


@dataclass
class LookaheadConfig(DrafterConfig):
    """The size of the window, and the pool of n-grams."""

    name: str = choice_name("lookahead")
    window: int = option(
        7,
        at_least=1,
        help="W: columns of the window, the number of positions after the text that are guessed in every forward",
    )
    ngram: int = option(
        5, at_least=2, help="N: tokens of an n-gram that is kept and drafted; the window has N - 1 rows"
    )
    guesses: int = option(
        7,
        at_least=1,
        help="G: maximum number of n-grams kept for each first token, and verified in each step; fewer where "
        "verifying more tokens is expensive",
    )
    seed_from_prompt: bool = option(
        True, help="true: begin with the n-grams of the prompt; for answers that repeat parts of it"
    )
    warm: bool = option(
        False,
        help="true: also draft n-grams of earlier requests, after the request's own; for prompts that resemble "
        "each other",
    )


@dataclass
class State:
    """The drafter's state for one request.

    Attributes:
        root: the root token of the last proposal.
        guessed: number of its nodes before the window's nodes.
    """

    pool: NgramPool
    window: Window
    root: int = 0
    guessed: int = 0


class Lookahead(Drafter):
    """Verifies n-grams of the pool and finds new ones in the window, in one forward."""

    Config = LookaheadConfig
    config: LookaheadConfig

    def __init__(self, target: TargetProtocol, config: LookaheadConfig, costs: Costs) -> None:
        super().__init__(target, config, costs)
        self.shared = NgramPool(config.guesses)
        self.states: WeakKeyDictionary[Context, State] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin with row 0 of the window, random prompt tokens, and a pool, which may already hold n-grams."""
        pool = NgramPool(self.config.guesses, earlier=self.shared if self.config.warm else None)
        prompt = context.tokens[: context.prompt_length]
        if self.config.seed_from_prompt:
            pool.add_text(prompt, self.config.ngram)
        first = random_prompt_tokens(prompt, self.config.window + self.config.ngram - 3, context.rng)
        self.states[context] = State(pool, Window(first, self.config.ngram))

    def propose(self, context: Context) -> Draft:
        """Return the guesses, then the window: if the target takes only a chain, the first guess remains."""
        state = self.states[context]
        state.root = context.tokens[-1]
        guesses = TokenTree.merged([tail[: context.room] for tail in state.pool.after(state.root)])
        state.guessed = len(guesses)
        state.window.narrow(context.room)
        return Draft(guesses.beside(state.window.tokens, state.window.parents), "lookahead")

    def observe(self, context: Context, step: Step) -> None:
        """Take the predictions after the window's last row as its next row; they complete an n-gram in every column.

        When sampling, they are the tokens drawn there, with the random numbers of the text to come. The output stays
        exact, because only those numbers decide the text, whatever is guessed.
        """
        state = self.states[context]
        if not state.window.rows or len(step.draft.tree) < state.guessed + len(state.window.tokens):
            return  # no window is left, or it was cut off because the target takes only chains
        for ngram in state.window.advance(state.root, step.predictions[self._front(state)]):
            state.pool.add(ngram)

    def _front(self, state: State) -> Tensor:
        """Return the (w,) indices of the window's next row in `Step.predictions`, whose first entry is the root's."""
        front = state.window.front
        return torch.where(front < 0, 0, front + state.guessed + 1)
