"""Jacobi drafting, panel (a): the full model predicts a block at once and refines its own predictions.

Santilli et al. 2023 (arXiv 2305.10427). Two modes:

* `fused`: every pass refines *and* verifies. It commits the block's matching prefix, and the other predictions are the
  next iterate, carried to the next pass. One forward a step.
* `literal`: N refining forwards, then the verifying one, as the figure is drawn. N + 1 forwards a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfdraft.core.jacobi import carried_block, is_fixed_point, next_iterate
from selfdraft.core.ngrams import NgramIndex, random_prompt_tokens
from selfdraft.core.options import option
from selfdraft.core.sampling import draw
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.target import Target

MODES = ("fused", "literal")
INITS = ("prompt_random", "repeat_last", "pad", "ngram", "previous_tail")
NGRAM_MIN, NGRAM_MAX = 1, 3  # of init=ngram: as prompt lookup, so that the two compare


@dataclass
class JacobiConfig(DrafterConfig):
    """Window W, number of refinements N, how blocks begin, and `fused` or `literal`.

    In fused mode the guesses left over from a pass are kept and filled up by `init`; after N passes they are dropped
    for a fresh block. With ``init=previous_tail`` they are kept for good.
    """

    name: str = "jacobi"
    window: int = option(8, at_least=1)
    refine_steps: int = option(2, at_least=1)
    init: str = option("prompt_random", choices=INITS)
    mode: str = option("fused", choices=MODES)


@dataclass
class Block:
    """What a request's block looks like between two steps."""

    guesses: list[int] = field(default_factory=list)  # refined guesses for the positions behind the root
    q: Tensor | None = None  # (len(guesses), V): what they were drawn from, when sampling
    passes: int = 0  # passes since the block was last started afresh
    index: NgramIndex | None = None


class Jacobi(Drafter):
    """A block of `window` guesses, refined up to `refine_steps` times before it is started afresh by `init`."""

    Config = JacobiConfig
    config: JacobiConfig

    def __init__(self, target: Target, config: JacobiConfig) -> None:
        super().__init__(target, config)
        self.path = target.full  # that refines, in literal mode

    def start(self, context: Context) -> None:
        """An empty block; its n-gram index only where the init looks one up."""
        context.memory = Block(index=NgramIndex(NGRAM_MIN, NGRAM_MAX) if self.config.init == "ngram" else None)

    def propose(self, context: Context) -> Draft:
        """The current iterate, as a chain of candidates."""
        block: Block = context.memory
        literal = self.config.mode == "literal"
        if self.config.init != "previous_tail" and (block.passes >= self.config.refine_steps or literal):
            block.guesses, block.q, block.passes = [], None, 0
        width = min(self.config.window, context.room)
        guesses = torch.tensor(self._filled(context, block, width), dtype=torch.long)
        q = self._drawn_from(block, guesses) if context.rule.sample else None
        passes = 0
        if literal:
            guesses, q, passes = self._refine(context, guesses, q)
        return Draft(TokenTree.chain(guesses), self.config.name, q, target_forwards=passes)

    def observe(self, context: Context, step: Step) -> None:
        """The logits of the pass are the next iterate: in greedy decoding its argmax, else a fresh draw from them."""
        block: Block = context.memory
        kept = len(step.path)
        block.passes += 1
        if step.distributions is None:
            block.guesses = carried_block(step.predictions, kept).tolist()
        else:
            block.q = carried_block(step.distributions, kept)
            block.guesses = draw(block.q, context.uniforms(len(block.q), block.q.device)).tolist()

    def _refine(self, context: Context, guesses: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
        """`refine_steps` refining forwards, or fewer if the fixed point comes first; and how many full ones it were."""
        passes = 0
        while len(guesses) and passes < self.config.refine_steps:
            passes += 1
            tree = TokenTree.chain(guesses)
            logits = self.target.draft_forward(self.path, [context.row], 0, [context.tokens[-1]], [tree])[0]
            if context.rule.sample:
                q = next_iterate(context.distributions(logits, tree=tree))
                guesses = draw(q, context.uniforms(len(q), q.device)).cpu()
                continue
            scores = context.rule.scores(logits, context.tokens, context.prompt_length, tree)
            refined = next_iterate(scores.argmax(-1).cpu())
            if is_fixed_point(guesses, refined):
                break
            guesses = refined
        return guesses, q, passes if self.path is self.target.full else 0

    def _drawn_from(self, block: Block, guesses: Tensor) -> Tensor | None:
        """(W, V) what each guess was drawn from: the last pass's distributions, then certainty for those filled up.

        The distributions of speculative Jacobi decoding: each guess is a fresh draw from the previous iterate's.
        """
        if block.q is None or not len(block.q):
            return None
        drawn = block.q[: len(guesses)]
        filled = guesses[len(drawn) :]
        certain = torch.nn.functional.one_hot(filled, drawn.shape[-1]).to(drawn)
        return torch.cat([drawn, certain])

    def _filled(self, context: Context, block: Block, width: int) -> list[int]:
        """The carried guesses, filled up to `width` by the init."""
        guesses = block.guesses[:width]
        missing = width - len(guesses)
        if not missing:
            return guesses
        if self.config.init == "prompt_random":
            return guesses + random_prompt_tokens(context.tokens[: context.prompt_length], missing, context.rng)
        if self.config.init == "pad":
            return guesses + [self.target.pad_id] * missing
        if self.config.init == "ngram":
            assert block.index is not None
            block.index.extend(context.tokens[len(block.index) :])
            guesses = guesses or block.index.continuation(width)
            missing = width - len(guesses)
        last = guesses[-1] if guesses else context.tokens[-1]
        return guesses + [last] * missing
