"""A jump into the model: the state of a new token in front of a late layer is predicted; trained copies go on from it.

The predictor reads the final hidden state of the token before and the embedding of the token itself, as in EAGLE (Li et
al. 2024, arXiv 2401.15077). Its first weights are a least-squares fit to the target's own states. The layers after it
are copies of the target's, and read the keys that the full model left in those layers, so no second cache is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.core.options import choice_name, option, redefault
from selfdraft.core.skipset import SkipSet
from selfdraft.core.training import Blocks
from selfdraft.data.packing import PackedBatch
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.paths.jump import evened
from selfdraft.models.paths.sparse import sparse_path
from selfdraft.models.training.student import Student
from selfdraft.models.training.teacher import TeacherOutputs
from selfdraft.modules.finetune import FinetuneModule
from selfdraft.modules.recipe_options import RecipeConfig

DEFAULT_COPIES = 3  # last layers, if none are named
FITTED_TOKENS = 16_384  # to which the predictor is fitted: about thirty for each weight of a row in small models
RIDGE = 1e-3  # of the mean square of the inputs, so that directions that hardly occur get no large weights


@dataclass
class JumpRecipeConfig(RecipeConfig):
    """Where the path begins, and which layers it runs."""

    name: str = choice_name("jump")
    copies: list[int] | None = option(
        None,
        at_least=1,
        help="layers of which trained copies draft, counted from 0, e.g. [27,28,29]; the input of the first is "
        "predicted. null: the last 3",
    )
    steps: int = redefault(RecipeConfig, "steps", 900)
    block: int = redefault(RecipeConfig, "block", 2)
    vocabulary: int | None = redefault(RecipeConfig, "vocabulary", 8192)


class Jump(FinetuneModule):
    """Trains a path that begins in the middle of the model, see `models.paths.jump.JumpPath`."""

    Config = JumpRecipeConfig
    config: JumpRecipeConfig
    drafter = "jump"

    def path(self, target: Target) -> Path:
        """Return the path of the layers that are copied.

        Raises:
            UserError: a copied layer is not one of the model's layers after the first.
        """
        layers = len(target.full.layers)
        given = self.config.copies
        self.copied = list(range(max(layers - DEFAULT_COPIES, 1), layers)) if given is None else sorted(set(given))
        if not self.copied or self.copied[-1] >= layers:
            raise UserError(
                f"finetune.copies={self.copied}: this model has {layers} layers; name some of 1 to {layers - 1}"
            )
        skipped = set(range(layers)) - set(self.copied)
        return sparse_path(target, SkipSet.of(layers, skipped, skipped))

    def make_student(self, target: Target, path: Path, vocabulary: Tensor | None) -> Student:
        """Return copies of the chosen layers and the norm, all of whose weights are trained, with a predictor."""
        return Student(target, path, whole=self.copied, norm=True, feature=True, jump=True, vocabulary=vocabulary)

    def states_before(self) -> tuple[int, ...]:
        """Return the first copied layer: the target's states in front of it are what is predicted."""
        return (self.copied[0],)

    def setup(self, stage: str) -> None:
        """Build target and student, and fit the predictor, unless an earlier training has left one."""
        if self.student is None:
            super().setup(stage)
            if self.config.start is None:
                self._fit_predictor()

    def inputs(self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs, rng: Generator) -> Tensor:
        """Return (B, M, C) predicted states; the final states after drafted tokens are the student's own."""
        embedded = self.target.anatomy.embed(blocks.gathered(batch.tokens))
        known = blocks.before(teacher.final, teacher.texts)
        later = torch.arange(known.shape[1], device=known.device) % blocks.size > 0
        before = known
        for _ in range(1, blocks.size):  # every pass makes the states of one more depth those of drafting
            with torch.no_grad():
                own = self.student(self._predicted(before, embedded), blocks, teacher)
            before = torch.where(later[:, None], own.roll(1, dims=1), known)
        return self._predicted(before, embedded)

    def options(self) -> dict[str, Any]:
        """Return the drafter's options: length and siblings by predicted gain at the drafting machine's costs."""
        return {"draft_length": self.config.block, "siblings": True, "length": "gain"}

    def _predicted(self, before: Tensor, embedded: Tensor) -> Tensor:
        assert self.student.feature is not None and self.student.jump is not None
        return self.student.feature(evened(before)) + self.student.jump(evened(embedded))

    @torch.no_grad()
    def _fit_predictor(self) -> None:
        """Set the predictor's weights to the least-squares fit on the first texts of the training.

        Every process adds its share, so that all of them begin with the same weights.
        """
        width, device = self.target.model.config.hidden_size, self.target.device
        squares = torch.zeros(2 * width, 2 * width, dtype=torch.double, device=device)
        products = torch.zeros(2 * width, width, dtype=torch.double, device=device)
        data = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]  # Lightning adds it
        rows = -(-FITTED_TOKENS // (self.config.batch_size * self.config.length * self.trainer.world_size))
        for batch in islice(data, rows):
            batch = batch.to(device)
            teacher = self.teach(batch)
            follows = (batch.texts[:, 1:] == batch.texts[:, :-1]) & (batch.texts[:, 1:] >= 0)
            embedded = self.target.anatomy.embed(batch.tokens)[:, 1:]
            given = torch.cat([evened(teacher.final[:, :-1]), evened(embedded)], dim=-1)[follows].double()
            squares += given.T @ given
            products += given.T @ teacher.states[self.copied[0]][:, 1:][follows].double()
        squares, products = (self.trainer.strategy.reduce(each, reduce_op="sum") for each in (squares, products))
        squares.diagonal().add_(RIDGE * squares.diagonal().mean())
        weights = torch.linalg.solve(squares, products).float().T
        assert self.student.feature is not None and self.student.jump is not None
        self.student.feature.weight.copy_(weights[:, :width])
        self.student.jump.weight.copy_(weights[:, width:])
