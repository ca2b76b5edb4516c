"""Jacobi trajectories of finished answers: the iterates that parallel refinement goes through on the way to them.

Consistency training teaches a model to jump from any iterate to the answer (CLLM, arXiv 2403.00835). The paper refines
one block after the other; here the answer is known, so every block sees the true tokens before it, and all blocks are
refined together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.random import default_rng

from selfdraft.core.blocks import BlockInit
from selfdraft.core.sampling import NextToken, most_likely
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.protocol import TargetProtocol

BLOCKS = 32  # blocks per forward, few because each reads its own copy of the row's keys


class Trajectories:
    """Records trajectories in one cache row of the target, which nobody else may use."""

    def __init__(self, target: TargetProtocol, rule: NextToken, *, width: int, passes: int, row: int) -> None:
        """Prepare to record.

        Args:
            rule: the rule by which the answers were decoded; it must be greedy.
            width: tokens per block. After `width` passes a block is at its fixed point, whatever it began with.
            passes: the most refinements.
            row: the cache row to use.
        """
        self.target, self.rule, self.width, self.row = target, rule, width, row
        self.passes = min(passes, width)

    @torch.inference_mode()
    def record(self, prompt: Sequence[int], answer: Sequence[int], seed: int) -> list[list[int]]:
        """Return the iterates of an answer, each as long as the answer.

        Returns:
            First random tokens of the prompt, then the result of each pass. If `passes` suffice, the last iterate is
            the fixed point, which is the answer up to rounding. A pass that changes nothing ends the list.
        """
        self.target.cache.clear(self.row)
        self.target.prefill(self.row, [*prompt, *answer[:-1]])
        init = BlockInit("prompt_random", prompt, self.target.pad_id, default_rng(seed))
        iterates = [init.filled(prompt, [], len(answer))]
        for _ in range(self.passes):
            refined = self._refined(prompt, answer, iterates[-1])
            if refined == iterates[-1]:
                break
            iterates.append(refined)
        return iterates

    def _refined(self, prompt: Sequence[int], answer: Sequence[int], guesses: Sequence[int]) -> list[int]:
        """Return the full model's prediction for every guess, given the guesses before it in its block."""
        # The input is shifted by one: each block begins with the true token before it, and drops its own last guess,
        # which no prediction needs.
        known = [prompt[-1], *answer[:-1]]
        seen = [known[i] if i % self.width == 0 else guesses[i - 1] for i in range(len(answer))]
        stride, best = BLOCKS * self.width, []
        for first in range(0, len(answer), stride):
            position = len(prompt) - 1 + first
            logits = self.target.replay(
                self.target.full, self.row, position, seen[first : first + stride], block=self.width
            )
            for i, block in enumerate(logits.split(self.width)):
                begin = first + i * self.width
                history = [*prompt, *answer[:begin]]
                chain = TokenTree.chain(seen[begin + 1 : begin + len(block)])
                best.append(most_likely(self.rule.scores(block, history, len(prompt), chain)))
        return torch.cat(best).tolist()
