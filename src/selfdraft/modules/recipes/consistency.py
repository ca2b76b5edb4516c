"""Consistency: train so that one refinement, from any state of a Jacobi trajectory, gives the trajectory's end.

CLLM's objective (Kou et al. 2024, arXiv 2403.00835) on draft-only weights: the adapted model refines and the target
verifies, so the output does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import Generator, default_rng
from torch import Tensor

from selfdraft.core.options import choice_name, option, redefault
from selfdraft.core.skipset import SkipSet
from selfdraft.core.training import Blocks, divergence, weighted_mean
from selfdraft.data.packing import PackedBatch
from selfdraft.models.training.teacher import TeacherOutputs
from selfdraft.modules.recipes.sparse_distill import SparseDistill, SparseDistillConfig


@dataclass
class ConsistencyConfig(SparseDistillConfig):
    """How blocks are refined in training, and which part of the model refines.

    Guesses come from the data's recorded trajectories (distill.trajectories), or are random tokens of the row where
    there are none. Without a skip set the whole model is adapted, for drafter=jacobi; with one, its path, for
    drafter=sparse_jacobi.
    """

    name: str = choice_name("consistency")
    block: int = option(
        8, at_least=2, help="number of tokens that are refined together: the known token and the guesses after it"
    )
    refine_steps: int = option(
        2,
        at_least=1,
        help="number of refinements after which accepted tokens are counted, in validation and in the drafter",
    )
    keep_layers: list[int] | None = option(
        None,
        at_least=0,
        help="layers that refine, for drafter=sparse_jacobi; null: the whole model, for drafter=jacobi, unless "
        "another option says which layers are skipped",
    )
    rank: int = redefault(SparseDistillConfig, "rank", 32)
    alpha: float = redefault(SparseDistillConfig, "alpha", 32.0)
    norm: bool = redefault(SparseDistillConfig, "norm", False)
    autoregressive_weight: float = option(
        1.0, at_least=0.0, help="weight of the loss after correct tokens, relative to the loss after guesses"
    )

    def skip_set(self, layers: int) -> SkipSet:
        """Return the configured skip set; nothing is skipped by default."""
        given = (self.keep_layers, self.skip_attention, self.skip_mlp, self.skip_from, self.exit_layer)
        return SkipSet() if given == (None,) * 5 else super().skip_set(layers)


class Consistency(SparseDistill):
    """The adapted model refines a block, as `jacobi` in its literal mode or `sparse_jacobi` does."""

    Config = ConsistencyConfig
    config: ConsistencyConfig

    @property
    def drafter(self) -> str:
        """The drafter that uses the weights: sparse_jacobi if any sublayer is skipped, jacobi otherwise."""
        return "sparse_jacobi" if len(self.draft_path.skip) else "jacobi"

    def loss(self, batch: PackedBatch, rng: Generator) -> Tensor:
        """Return the divergence from a block's first wrong guess on, plus the weighted one after correct tokens."""
        blocks = self.blocks(batch, int(rng.integers(self.stride)), answers_only=self.config.answers_only)
        teacher, truth = self.teach(batch), blocks.gathered(batch.tokens).view_as(blocks.index)
        guesses = self._guesses(batch, blocks, rng)
        counted = blocks.valid.flatten(1)
        with torch.no_grad():
            teacher_logits = self.student.logits(blocks.gathered(teacher.final)[counted])
        astray = ((guesses != truth).long().cumsum(-1) > 0).flatten(1)[counted].float()
        loss = weighted_mean(divergence(self._logits(guesses, blocks, teacher, counted), teacher_logits), astray)
        if weight := self.config.autoregressive_weight:
            loss = loss + weight * divergence(self._logits(truth, blocks, teacher, counted), teacher_logits).mean()
        return loss

    def right(self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs) -> Tensor:
        """Return (B, G, K) whether each prediction is the target's, after refining from a trajectory's first pass."""
        guesses = self._guesses(batch, blocks, default_rng(self.seed), at=0)
        for step in range(self.config.refine_steps):
            hidden = self._hidden(guesses, blocks, teacher)
            if step + 1 < self.config.refine_steps:
                ids = self.student.token_ids(self.student.logits(hidden)).view_as(guesses)
                guesses = torch.cat([guesses[..., :1], ids[..., :-1]], dim=-1)
        return self.agrees(hidden, blocks, teacher)

    def options(self) -> dict[str, Any]:
        """Return the drafter's options; the window is one shorter than a block, whose first token is known."""
        # Its training trajectories begin with tokens drawn from the prompt, too.
        mode = {} if self.drafter == "sparse_jacobi" else {"mode": "literal", "init": "prompt_random"}
        return {"window": self.config.block - 1, "refine_steps": self.config.refine_steps, **mode}

    def _hidden(self, tokens: Tensor, blocks: Blocks, teacher: TeacherOutputs) -> Tensor:
        return self.student(self.target.anatomy.embed(tokens.flatten(1)), blocks, teacher)

    def _logits(self, tokens: Tensor, blocks: Blocks, teacher: TeacherOutputs, counted: Tensor) -> Tensor:
        return self.student.logits(self._hidden(tokens, blocks, teacher)[counted])

    def _guesses(self, batch: PackedBatch, blocks: Blocks, rng: Generator, at: int | None = None) -> Tensor:
        """Return (B, G, K) each block's known first token and guesses of the others.

        Args:
            at: pass of the trajectories that the guesses are taken from; None draws one at random for each block.
        """
        tokens, index = batch.tokens, blocks.index
        places = torch.from_numpy(rng.integers(0, tokens.shape[1], index.shape)).to(index.device)
        guesses = tokens.gather(1, places.flatten(1)).view_as(index)
        if batch.iterates is not None:
            passes = batch.iterates.shape[1]
            chosen = torch.from_numpy(rng.integers(0, passes, index.shape[:2])).to(index.device)
            chosen = torch.full_like(chosen, at) if at is not None else chosen
            rows = torch.arange(len(index), device=index.device)[:, None, None]
            recorded = batch.iterates[rows, chosen[..., None], index]
            guesses = torch.where(recorded >= 0, recorded, guesses)
        return torch.cat([tokens.gather(1, index[..., 0])[..., None], guesses[..., 1:]], dim=-1)
