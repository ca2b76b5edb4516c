"""Jacobi drafting, panel (a): the full model predicts a block at once and refines its own predictions.

Santilli et al. 2023 (arXiv 2305.10427). Two modes:

* `fused`: every pass refines *and* verifies. It commits the block's matching prefix, and the other predictions are the
  next iterate, carried to the next pass. One forward a step.
* `literal`: N refining forwards, then the verifying one, as the figure is drawn. N + 1 forwards a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from selfdraft.core.jacobi import carried_block, is_fixed_point, next_iterate
from selfdraft.core.ngrams import NgramIndex, random_prompt_tokens
from selfdraft.core.options import option
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step

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
    passes: int = 0  # passes since the block was last started afresh
    index: NgramIndex | None = None


class Jacobi(Drafter):
    """A block of `window` guesses, refined up to `refine_steps` times before it is started afresh by `init`."""

    Config = JacobiConfig
    config: JacobiConfig

    def start(self, context: Context) -> None:
        """An empty block; its n-gram index only where the init looks one up."""
        context.memory = Block(index=NgramIndex(NGRAM_MIN, NGRAM_MAX) if self.config.init == "ngram" else None)

    def propose(self, context: Context) -> Draft:
        """The current iterate, as a chain of candidates."""
        block: Block = context.memory
        if self.config.init != "previous_tail" and (
            block.passes >= self.config.refine_steps or self.config.mode == "literal"
        ):
            block.guesses, block.passes = [], 0
        width = min(self.config.window, context.room)
        guesses = torch.tensor(self._filled(context, block, width), dtype=torch.long)
        if self.config.mode == "literal":
            guesses = self._refine(context, guesses)
        return Draft(TokenTree.chain(guesses), source="jacobi")

    def observe(self, context: Context, step: Step) -> None:
        """The logits of the pass are the next iterate."""
        block: Block = context.memory
        block.guesses = carried_block(step.predictions, len(step.path)).tolist()
        block.passes += 1

    def _refine(self, context: Context, guesses: torch.Tensor) -> torch.Tensor:
        """`refine_steps` refining forwards, or fewer if the fixed point comes first."""
        for _ in range(self.config.refine_steps if len(guesses) else 0):
            logits = self.target.draft_forward(
                self.target.full, [context.row], 0, [context.tokens[-1]], [TokenTree.chain(guesses)]
            )[0]
            refined = next_iterate(logits.argmax(-1).cpu())
            if is_fixed_point(guesses, refined):
                break
            guesses = refined
        return guesses

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
