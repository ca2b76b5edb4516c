"""An early exit with trained layers: the target's own first layers, then trainable copies of some later ones.

Kangaroo's idea (Liu et al. 2024, arXiv 2404.18911), with two differences. The early layers have no adapter, so drafting
computes the target's own states there and verification continues from them. And each trained layer is a copy of a late
layer and reads the keys that the *full* model left in that layer, so it sees the full model's context and needs no
second cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.random import Generator
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.core.options import choice_name, option, redefault
from selfdraft.core.skipset import SkipSet
from selfdraft.core.training import Blocks
from selfdraft.data.packing import PackedBatch
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.paths.sparse import sparse_path
from selfdraft.models.training.student import Student
from selfdraft.models.training.teacher import TeacherOutputs
from selfdraft.modules.finetune import FinetuneModule
from selfdraft.modules.recipe_options import RecipeConfig


@dataclass
class ExitAdapterConfig(RecipeConfig):
    """Which layers draft before the exit, and which are copied and trained after it."""

    name: str = choice_name("exit_adapter")
    exit_layer: int = option(
        8,
        at_least=1,
        help="number of first layers, which draft as they are; verification goes on from their outputs. Fewer are "
        "cheaper and draft worse",
    )
    twins: list[int] | None = option(
        None,
        at_least=0,
        help="layers of which trained copies draft after the exit, counted from 0, e.g. [28,29]; null: the last layer",
    )
    feature: bool = option(
        False,
        help="true: the first copy also gets the full model's final hidden state of the last token, through a "
        "trained matrix (as in EAGLE)",
    )
    steps: int = redefault(RecipeConfig, "steps", 600)
    block: int = redefault(RecipeConfig, "block", 2)
    vocabulary: int | None = redefault(RecipeConfig, "vocabulary", 8192)


class ExitAdapter(FinetuneModule):
    """Trains drafter `early_exit`, whose verification reuses the early layers' states."""

    Config = ExitAdapterConfig
    config: ExitAdapterConfig
    drafter = "early_exit"

    def path(self, target: Target) -> Path:
        """Return the path of the first layers and the layers that are copied.

        Raises:
            UserError: a copied layer is not one of the layers after the exit.
        """
        layers, exit_layer = len(target.full.layers), self.config.exit_layer
        self.copied = [layers - 1] if self.config.twins is None else sorted(set(self.config.twins))
        if not self.copied or self.copied[0] < exit_layer or self.copied[-1] >= layers:
            raise UserError(
                f"finetune.exit_layer={exit_layer} with finetune.twins={self.copied}: this model has layers 0 to "
                f"{layers - 1}, and twins are copies of layers after the first exit_layer ones: give a smaller "
                "exit_layer, or other twins"
            )
        skipped = set(range(exit_layer, layers)) - set(self.copied)
        return sparse_path(target, SkipSet.of(layers, skipped, skipped))

    def make_student(self, target: Target, path: Path, vocabulary: Tensor | None) -> Student:
        """Return copies of the chosen layers, all of whose weights are trained, and a trainable norm."""
        return Student(
            target,
            path,
            first=self.config.exit_layer,
            whole=self.copied,
            norm=True,
            feature=self.config.feature,
            vocabulary=vocabulary,
        )

    def states_before(self) -> tuple[int, ...]:
        """Return the exit layer: the hidden states that leave the early layers are the input."""
        return (self.config.exit_layer,)

    def inputs(self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs, rng: Generator) -> Tensor:
        """Return (B, M, C) the hidden states at the exit, plus the feature if there is one."""
        hidden = blocks.gathered(teacher.states[self.config.exit_layer])
        if self.student.feature is not None:
            hidden = hidden + self.student.feature(blocks.before(teacher.final, teacher.texts))
        return hidden

    def options(self) -> dict[str, Any]:
        """Return the drafter's options: length and siblings by predicted gain at the drafting machine's costs."""
        return {"draft_length": self.config.block, "siblings": True, "length": "gain"}
