"""Self-distillation of a sparse path: LoRA on the layers that a skip set leaves, taught by the whole model.

LayerSkip's curriculum (Elhoushi et al. 2024, arXiv 2404.16710) is optional: layer dropout, and losses at earlier
layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from numpy.random import Generator
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.core.options import choice_name, option
from selfdraft.core.skipset import SkipSet
from selfdraft.core.training import Blocks, distance, divergence, early_layer, layer_dropout
from selfdraft.data.packing import PackedBatch
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.paths.sparse import sparse_path
from selfdraft.models.training.student import Student
from selfdraft.models.training.teacher import TeacherOutputs
from selfdraft.modules.finetune import FinetuneModule
from selfdraft.modules.recipe_options import RecipeConfig
from selfdraft.tracking.files.artifact import Artifact

CURRICULA = ("none", "rotational", "gradual")


@dataclass
class SparseDistillConfig(RecipeConfig):
    """Which sublayers the path skips, and the terms of the loss.

    The skip set is given in one of four ways: `keep_layers`, `skip_attention` with `skip_mlp`, `skip_from` or
    `exit_layer`.
    """

    name: str = choice_name("sparse_distill")
    keep_layers: list[int] | None = option(
        None,
        at_least=0,
        help="layers that draft, counted from 0, e.g. [0,2,29]; null: every other one, unless another option says "
        "which layers are skipped",
    )
    skip_attention: list[int] | None = option(
        None, at_least=0, help="in place of keep_layers: layers whose attention is skipped"
    )
    skip_mlp: list[int] | None = option(
        None, at_least=0, help="with skip_attention or alone: layers whose MLP is skipped"
    )
    skip_from: str | None = option(
        None, help="in place of keep_layers: drafter.yaml of a task=calibrate run, which says what is skipped"
    )
    exit_layer: int | None = option(None, at_least=1, help="in place of keep_layers: keep only this many first layers")
    norm: bool = option(True, help="true: also train a final norm for the drafting layers")
    hidden_weight: float = option(
        0.0,
        at_least=0.0,
        help="weight of a loss that brings the last hidden state near the target's; 0: learn from the predictions only",
    )
    layer_dropout: float = option(
        0.0,
        at_least=0.0,
        below=1.0,
        help="chance that the last kept layer is left out in a training step, and smaller ones for earlier layers "
        "(LayerSkip); 0: never",
    )
    curriculum: str = option(
        "none",
        choices=CURRICULA,
        help="also learn to predict from an earlier layer in each step (LayerSkip): none, rotational (each layer "
        "in turn) or gradual (in turn among more and more layers, from the last on)",
    )
    early_weight: float = option(0.5, at_least=0.0, help="with curriculum, weight of the loss at the earlier layer")

    def __post_init__(self) -> None:
        super().__post_init__()
        named = self.skip_attention is not None or self.skip_mlp is not None
        ways = [self.keep_layers is not None, named, self.skip_from is not None, self.exit_layer is not None]
        if sum(ways) > 1:
            raise UserError(
                "finetune: give one of keep_layers, skip_attention with skip_mlp, skip_from and exit_layer, not several"
            )

    def skip_set(self, layers: int) -> SkipSet:
        """Return the skip set for a model of `layers` layers; by default every other inner layer is skipped.

        Raises:
            UserError: a named layer does not exist, or the artifact has no skip set.
        """
        if self.skip_from is not None:
            found = Artifact.read(FilePath(self.skip_from), "finetune.skip_from").options
            attention, mlp = found.get("skip_attention"), found.get("skip_mlp")
            if attention is None and mlp is None:
                raise UserError(f"finetune.skip_from={self.skip_from} names no skip set: give one of task=calibrate")
            return SkipSet.of(layers, attention or (), mlp or (), "finetune.skip_from")
        if self.exit_layer is not None:
            if self.exit_layer >= layers:
                raise UserError(
                    f"finetune.exit_layer={self.exit_layer}: this model has {layers} layers; leave before the last, "
                    f"at 1 to {layers - 1}"
                )
            return SkipSet.from_layer(layers, self.exit_layer)
        if self.skip_attention is not None or self.skip_mlp is not None:
            return SkipSet.of(layers, self.skip_attention or (), self.skip_mlp or (), self.config_group)
        kept = set(range(0, layers, 2)) | {layers - 1} if self.keep_layers is None else set(self.keep_layers)
        if wrong := sorted(kept - set(range(layers))):
            raise UserError(f"finetune.keep_layers={wrong}: this model's layers are 0 to {layers - 1}")
        rest = set(range(layers)) - kept
        return SkipSet.of(layers, rest, rest)

    def refuse_missing_layers(self, layers: int) -> None:
        """Check the named layers (see `RecipeConfig`)."""
        self.skip_set(layers)


class SparseDistill(FinetuneModule):
    """Trains drafter `layer_skip`, which runs the kept layers with the LoRA merged into them."""

    Config = SparseDistillConfig
    config: SparseDistillConfig

    @property
    def drafter(self) -> str:
        """The drafter that uses the weights."""
        return "layer_skip"

    def path(self, target: Target) -> Path:
        """Return the target's path without the sublayers of the skip set."""
        return sparse_path(target, self.config.skip_set(len(target.full.layers)))

    def make_student(self, target: Target, path: Path, vocabulary: Tensor | None) -> Student:
        """Return trainable copies of all kept layers."""
        config = self.config
        return Student(target, path, rank=config.rank, alpha=config.alpha, norm=config.norm, vocabulary=vocabulary)

    def inputs(self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs, rng: Generator) -> Tensor:
        """Return (B, M, C) the tokens' embeddings."""
        return self.target.anatomy.embed(blocks.gathered(batch.tokens))

    def dropped(self, rng: Generator) -> tuple[int, ...]:
        """Return the trainable copies left out of this step, drawn with LayerSkip's rates."""
        rates = layer_dropout(len(self.student.layers), self.config.layer_dropout)
        return tuple(at for at, rate in enumerate(rates) if rng.random() < rate)

    def extra_loss(
        self, states: list[Tensor], hidden: Tensor, logits: Tensor, blocks: Blocks, teacher: TeacherOutputs
    ) -> Tensor:
        """Return the loss of matching hidden states, plus that of matching the distribution at an earlier layer."""
        config, counted, extra = self.config, blocks.valid.flatten(1), hidden.new_zeros(())
        if config.hidden_weight:
            theirs = blocks.gathered(teacher.final)[counted]
            extra = extra + config.hidden_weight * distance(hidden[counted], theirs).mean()
        early = early_layer(config.curriculum, len(self.student.layers), self.global_step, config.steps)
        if early is not None:
            ours = self.student.logits(states[early][counted])
            extra = extra + config.early_weight * divergence(ours, logits).mean()
        return extra

    def options(self) -> dict[str, Any]:
        """Return the drafter's options: drafts as long as the blocks in training."""
        return {"draft_length": self.config.block}
