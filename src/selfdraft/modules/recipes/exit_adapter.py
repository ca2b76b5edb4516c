"""An exit with a block of its own: behind the first layers, which stay the target's, trained copies of later ones.

Kangaroo's idea (Liu et al. 2024, arXiv 2404.18911), with two differences. As the early layers carry no adapter, what
they compute while drafting is the target's own, and verification goes on from there. And the trained block is the twin
of a late layer, which reads the keys that the *full* model left in that layer: what the whole model knows of the text
is there for the looking, and no second cache is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.random import Generator
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.core.lessons import Blocks
from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.data.packing import PackedBatch
from selfdraft.models.sparse import Path
from selfdraft.models.student import Student
from selfdraft.models.target import Target
from selfdraft.models.teacher import Lesson
from selfdraft.modules.finetune import FinetuneModule, RecipeConfig


@dataclass
class ExitAdapterConfig(RecipeConfig):
    """Leave behind `exit_layer` layers, and go on through trained twins of `twins` (null: of the last layer).

    `feature`: into the first twin goes, beside what leaves the exit, the final hidden state of the last token that the
    full model has seen, through a trained matrix.
    """

    name: str = "exit_adapter"
    exit_layer: int = option(8, at_least=1)
    twins: list[int] | None = option(None, at_least=0)
    feature: bool = False
    block: int = option(2, at_least=1)
    vocabulary: int | None = option(8192, at_least=2)
    learning_rate: float = option(5e-4, at_least=0.0)


class ExitAdapter(FinetuneModule):
    """Drafts with `early_exit`, whose verification reuses the early layers."""

    Config = ExitAdapterConfig
    config: ExitAdapterConfig
    drafter = "early_exit"

    def path(self, target: Target) -> Path:
        """The first layers and the twins' places."""
        layers, exit_layer = len(target.full.layers), self.config.exit_layer
        self.twins = [layers - 1] if self.config.twins is None else sorted(set(self.config.twins))
        if not self.twins or self.twins[0] < exit_layer or self.twins[-1] >= layers:
            raise UserError(
                f"finetune.exit_layer={exit_layer} with twins={self.twins}: this model has {layers} layers, and "
                "twins stand for layers behind the exit"
            )
        skipped = set(range(exit_layer, layers)) - set(self.twins)
        return target.sparse_path(SkipSet.of(layers, skipped, skipped))

    def make_student(self, target: Target, path: Path, words: Tensor | None) -> Student:
        """Copies of the twins' layers, trained altogether, and a norm."""
        return Student(
            target,
            path,
            first=self.config.exit_layer,
            whole=self.twins,
            norm=True,
            feature=self.config.feature,
            vocabulary=words,
        )

    def states_before(self) -> tuple[int, ...]:
        """What leaves the early layers."""
        return (self.config.exit_layer,)

    def inputs(self, batch: PackedBatch, blocks: Blocks, lesson: Lesson, rng: Generator) -> Tensor:
        """The same, with what the feature adds to it."""
        hidden = blocks.gathered(lesson.states[self.config.exit_layer])
        if self.student.feature is not None:
            hidden = hidden + self.student.feature(blocks.before(lesson.final, lesson.texts))
        return hidden

    def options(self) -> dict[str, Any]:
        """As many tokens, and leaves beside them, as pay by the costs of the machine that drafts."""
        return {"draft_length": self.config.block, "siblings": True, "length": "gain"}
