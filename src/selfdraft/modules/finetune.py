"""Fine-tuning of draft-only weights under a Lightning Trainer: what all recipes share.

A recipe says which layers get trainable copies, what their input is, and which terms it adds to the loss. The frozen
target is run over every text (see `models.training.teacher`); the copies then learn its next-token distributions (see
`models.training.student`). Training is monitored and stopped by the number of drafted tokens that would be accepted,
not by the loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from numpy.random import Generator, default_rng
from pytorch_lightning.callbacks import Timer
from torch import Tensor

from selfdraft.core.paths import expanded_name
from selfdraft.core.training import (
    Blocks,
    blocks_of,
    chain_counts,
    divergence,
    expected_accepted,
    wanted_positions,
    weighted_mean,
)
from selfdraft.data.packing import PackedBatch
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.training.shards import leave_divided_weights_alone, shard_layers
from selfdraft.models.training.student import Student
from selfdraft.models.training.teacher import TeacherOutputs, TeacherOutputStore, teach
from selfdraft.modules.checkpoints import fitted
from selfdraft.modules.recipe_options import RecipeConfig

WATCHED = "expected_accepted"
START = "finetune.start"


class FinetuneModule(pl.LightningModule, ABC):
    """Base class of the recipes: runs the teacher, computes the loss, counts acceptance and saves the weights."""

    Config: ClassVar[type[RecipeConfig]]

    def __init__(
        self,
        config: RecipeConfig,
        build: Callable[[torch.device], Target],
        *,
        draft_ids: Sequence[int] | None,
        seed: int,
        sharded: bool = False,
    ) -> None:
        """Prepare a fine-tuning.

        Args:
            build: makes the target on this process's device, in float32 and unpacked.
            draft_ids: token ids that drafts may contain; None for all.
            seed: seed of everything random in training.
            sharded: whether the trainer's processes divide the target's layers. They then have to run the target and
                the trainable copies equally often (see `_most`).
        """
        super().__init__()
        self.sharded = sharded
        self.config, self.build, self.draft_ids, self.seed = config, build, draft_ids, seed
        self.strict_loading = False  # checkpoints hold only the trained weights, none of the target's
        self.student: Student = None  # type: ignore[assignment]  # until `setup`, which has the device for it
        self.history: list[dict[str, Any]] = []
        self._counts: Tensor | None = None

    @property
    @abstractmethod
    def drafter(self) -> str:
        """The name of the drafter that uses the trained weights."""

    @abstractmethod
    def path(self, target: Target) -> Path:
        """Return the path of the target that drafts run.

        Raises:
            UserError: the target has no such path.
        """

    @abstractmethod
    def make_student(self, target: Target, path: Path, vocabulary: Tensor | None) -> Student:
        """Return trainable copies of the path's layers; `vocabulary`: (v,) ids that may be drafted, None for all."""

    @abstractmethod
    def inputs(self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs, rng: Generator) -> Tensor:
        """Return (B, M, C) the input of the first trainable copy at every position of the blocks."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the drafter's options that fit the trained weights, without `adapter`."""

    @property
    def stride(self) -> int:
        """Positions from one block to the next."""
        return self.config.block

    def states_before(self) -> tuple[int, ...]:
        """Return the layers whose input hidden states the recipe needs from the target."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Return the settings that this recipe adds to those that every adapter stores."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are trained besides the copied layers, by name."""
        return {}

    def predictions(self, hidden: Tensor, batch: PackedBatch, blocks: Blocks) -> Tensor:
        """Return (B, M, C) the hidden states that the head reads, computed from `hidden`, the output of the norm."""
        return hidden

    def extra_loss(
        self, states: list[Tensor], hidden: Tensor, logits: Tensor, blocks: Blocks, teacher: TeacherOutputs
    ) -> Tensor:
        """Return the recipe's additional loss; `logits`: (n, v) the target's at the positions that count."""
        return hidden.new_zeros(())

    def dropped(self, rng: Generator) -> tuple[int, ...]:
        """Return the indices of the trainable copies that a training step leaves out."""
        return ()

    def setup(self, stage: str) -> None:
        """Build the target and the trainable copies of its layers on this process's device."""
        if getattr(self, "student", None) is not None:
            return
        device = self.trainer.strategy.root_device
        if self.sharded:  # a model that needs this may be too large for the device
            self.prepare(self.build(torch.device("cpu")))
            shard_layers(self.target, device)
            self.student.divide()
            leave_divided_weights_alone(self)
            self.to(device)
        else:
            self.prepare(self.build(device))

    def prepare(self, target: Target) -> None:
        """Take a target, in float32 and unpacked, and make the trainable copies of its layers."""
        self.target = target
        vocabulary = None if self.draft_ids is None else torch.tensor(sorted(self.draft_ids), device=self.target.device)
        self.draft_path = self.path(self.target)
        self.student = self.make_student(self.target, self.draft_path, vocabulary)
        if self.config.start is not None:
            self.adapter().begin_with(Adapter.read(expanded_name(self.config.start, START), START), START)
        compute = partial(teach, self.target, layers=self.student.indices, before=self.states_before())
        self._teacher_outputs: Callable[..., TeacherOutputs] = compute
        if self.config.remember:
            self._teacher_outputs = TeacherOutputStore(compute, self._most)

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule in the form that Lightning expects."""
        optimizer, schedule = self._optimizer()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _optimizer(self) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
        """Return AdamW and its schedule: a linear warm-up of the rate, then a cosine down to a tenth of it.

        The rate goes by the share of `steps` that are done, or of `minutes` if that is greater: it also falls to its
        end where the time runs out first.
        """
        steps, config = self.config.steps, self.config
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad], lr=config.learning_rate, weight_decay=0.0
        )
        warm = max(int(config.warmup * steps), 1)

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            done = max((step - warm) / max(steps - warm, 1), self._time_passed())
            return 0.1 + 0.45 * (1 + math.cos(math.pi * min(done, 1.0)))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def _time_passed(self) -> float:
        """Return the share of `minutes` that has passed; 0 without a limit."""
        callbacks = [] if self._trainer is None else self._trainer.callbacks  # type: ignore[attr-defined]  # Lightning adds it
        timer = next((each for each in callbacks if isinstance(each, Timer)), None)
        return 0.0 if timer is None or not self.config.minutes else timer.time_elapsed() / (60 * self.config.minutes)

    def _most(self, count: int) -> int:
        """Return the greatest of the counts that the processes give, if they divide the target's layers."""
        if not self.sharded:
            return count
        return int(self.trainer.strategy.reduce(torch.tensor(count, device=self.device), reduce_op="max"))

    def teach(self, batch: PackedBatch) -> TeacherOutputs:
        """Return the teacher outputs of a batch that the trainable copies need."""
        return self._teacher_outputs(batch.tokens, batch.positions, batch.texts)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Return the loss of one batch. Random draws follow from seed, step and rank: a resumed run repeats them."""
        rng = default_rng((self.seed, self.global_step, batch_idx, self.global_rank))
        loss = self.loss(batch, rng)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def loss(self, batch: PackedBatch, rng: Generator) -> Tensor:
        """Return the mean divergence from the target over the blocks, plus the recipe's extra loss."""
        blocks = self.blocks(batch, int(rng.integers(self.stride)), answers_only=self.config.answers_only)
        teacher = self.teach(batch)
        states: list[Tensor] = []
        given = self.inputs(batch, blocks, teacher, rng)
        hidden = self.student(given, blocks, teacher, states=states, dropped=self.dropped(rng))
        counted = blocks.valid.flatten(1)
        with torch.no_grad():
            teacher_logits = self.student.logits(blocks.gathered(teacher.final)[counted])
        ours = self.student.logits(self.predictions(hidden, batch, blocks)[counted])
        weights = torch.ones(len(ours), device=ours.device)
        return weighted_mean(divergence(ours, teacher_logits), weights) + self.extra_loss(
            states, hidden, teacher_logits, blocks, teacher
        )

    def blocks(self, batch: PackedBatch, offset: int, *, answers_only: bool) -> Blocks:
        """Return the blocks of positions to train on, each as long as a draft; `offset`: where the first one begins."""
        wanted = wanted_positions(batch.texts, batch.answers, answers_only=answers_only)
        return blocks_of(batch.texts, wanted, self.config.block, self.stride, offset)

    def right(self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs) -> Tensor:
        """Return (B, G, K) whether the trainable copies predict the target's most likely token."""
        given = self.inputs(batch, blocks, teacher, default_rng(self.seed))
        hidden = self.predictions(self.student(given, blocks, teacher), batch, blocks)
        return self.agrees(hidden, blocks, teacher)

    def agrees(self, hidden: Tensor, blocks: Blocks, teacher: TeacherOutputs) -> Tensor:
        """Return (B, G, K) whether the head, given (B, M, C) hidden states, predicts the target's most likely token."""
        counted, agree = blocks.valid.flatten(1), torch.zeros_like(blocks.valid.flatten(1))
        theirs = self.target.head(blocks.gathered(teacher.final)[counted]).argmax(-1)
        agree[counted] = self.student.token_ids(self.student.logits(hidden[counted])) == theirs
        return agree.view_as(blocks.valid)

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Count the tokens that would be accepted, in answers only."""
        blocks = self.blocks(batch, 0, answers_only=True)
        counts = chain_counts(self.right(batch, blocks, self.teach(batch)), blocks.valid)
        self._counts = counts if self._counts is None else self._counts + counts

    def on_validation_epoch_end(self) -> None:
        """Sum the counts of all ranks, then divide."""
        counts = self._counts if self._counts is not None else torch.zeros(self.config.block, 2)
        counts = self.trainer.strategy.reduce(counts.to(self.device).double(), reduce_op="sum").cpu()
        self._counts = None
        rates = [accepted / offered if offered else 0.0 for offered, accepted in counts.tolist()]
        self.log(WATCHED, expected_accepted(counts), prog_bar=True)
        for depth, rate in enumerate(rates, start=1):
            self.log(f"acceptance/depth_{depth}", rate)
        if not self.trainer.sanity_checking:
            self.history.append(
                {"step": self.global_step, WATCHED: expected_accepted(counts), "acceptance_by_depth": rates}
            )

    def adapter(self) -> Adapter:
        """Return the trained weights as an adapter."""
        base = self.student.adapter(self.Config.name, self.draft_path, **self.settings())
        return Adapter(base.recipe, base.settings, {**base.tensors, **self.tensors()})

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the trained weights only; the target's are frozen and stored elsewhere."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history of validations to the checkpoint."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over a checkpoint and its history, if it has the form that this training writes.

        Raises:
            UserError: a part of it is missing, or of another type or shape.
        """
        assert self.trainer.ckpt_path is not None
        path = FilePath(self.trainer.ckpt_path)
        checkpoint |= fitted(checkpoint, self._expected(checkpoint), path)
        self.history = self.history_of(checkpoint, path)

    def history_of(self, checkpoint: Mapping[str, Any], path: FilePath) -> list[dict[str, Any]]:
        """Return the validations up to a checkpoint; the last one is that of the checkpoint's own weights.

        Raises:
            UserError: there are none, or they do not have the form that this training writes.
        """
        line = {"step": 0, WATCHED: 0.0, "acceptance_by_depth": [0.0] * self.config.block}
        expected = {"history": [line] * max(len(checkpoint["history"]), 1)}
        return fitted(checkpoint, expected, path)["history"]

    def _expected(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checkpoint as this training would write it, with initial values."""
        optimizer, schedule = self._optimizer()
        given = checkpoint["optimizer_states"][0] if checkpoint["optimizer_states"] else {}
        known = given.get("state", {}) if isinstance(given, Mapping) else {}
        moments = {  # a parameter that was dropped at every step so far has none
            at: {"step": torch.tensor(0.0), "exp_avg": p.detach(), "exp_avg_sq": p.detach()}
            for at, p in enumerate(optimizer.param_groups[0]["params"])
            if isinstance(known, Mapping) and at in known
        }
        timers = {
            callback.state_key: {"time_elapsed": dict.fromkeys(callback.state_dict()["time_elapsed"], 0.0)}
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning adds it when it is made
            if isinstance(callback, Timer)
        }
        return {
            "epoch": 0,
            "global_step": 0,
            "state_dict": self.state_dict(),
            "loops": {"fit_loop": self.trainer.fit_loop.state_dict()},
            "callbacks": timers,
            "optimizer_states": [{**optimizer.state_dict(), "state": moments}],
            "lr_schedulers": [schedule.state_dict()],
        }

    def transfer_batch_to_device(self, batch: PackedBatch, device: torch.device, dataloader_idx: int) -> PackedBatch:
        """Move the batch with its own `to`, as Lightning does not know the type."""
        return batch.to(device)
