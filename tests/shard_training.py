"""One of two processes that train each LoRA recipe with whole and divided layers:  shard_training.py RANK FOLDER

Writes to FOLDER/RANK.json, by case, what was trained and what the process held meanwhile;
tests/modules/test_divided_training.py reads it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from selfdraft.app.runs.processes import OwnProcesses
from selfdraft.app.runs.session import quiet
from selfdraft.data.distilled import Text
from selfdraft.data.textmodule import TextDataModule
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.modules.finetune import FinetuneModule
from selfdraft.modules.recipes import RECIPES
from shard_ranks import RANKS, held

PROMPT, ANSWER, STEPS, HIDDEN = 4, 20, 4, 128
BUCKET = 0.01  # MiB
PATIENCE = timedelta(minutes=4)  # a process that waits for the others for ever fails by then


@dataclass(frozen=True)
class Case:
    """A recipe, its options, and how it is trained."""

    recipe: str
    options: dict[str, Any]
    family: str = "llama"
    precision: str = "32-true"
    accumulate: int = 1
    draft_ids: list[int] | None = None


SHORT = {"rank": 4, "alpha": 4.0}
CASES = {
    "sparse_distill": Case("sparse_distill", {**SHORT, "remember": False}, accumulate=2),
    # Each process draws which layers it drops, among them the first one.
    "sparse_distill without some layers": Case(
        "sparse_distill", {**SHORT, "layer_dropout": 0.7, "curriculum": "gradual", "skip_attention": [1]}
    ),
    "consistency": Case("consistency", {**SHORT, "block": 4}),
    "consistency in bfloat16": Case("consistency", {**SHORT, "keep_layers": [0, 3]}, precision="bf16-mixed"),
    "pseudo_tokens": Case("pseudo_tokens", {**SHORT, "first_layer": 1}, "gemma2", draft_ids=[*range(60)]),
    "pseudo_tokens in bfloat16": Case("pseudo_tokens", {**SHORT, "sampler": False}, "gpt_neox", precision="bf16-mixed"),
    # Each process draws whether it feeds predictions back, and so runs the layers once more.
    "fused_jacobi": Case("fused_jacobi", {**SHORT, "enter": 1, "sampler": 16, "feedback": 0.5}),
}


@dataclass
class Notes(pl.Callback):
    """What a training shows while it goes on.

    Attributes:
        losses: by step. kept: MiB of whole frozen matrices, or copies of them, that autograd kept for the backward
            pass, at most.
        whole: layers whose weights were whole at once in the backward pass, at most; and, between steps, at most.
        held: MiB of all tensors after the last step.
    """

    losses: list[float] = field(default_factory=list)
    kept: float = 0.0
    whole: int = 0
    between: int = 0
    held: float = 0.0
    hooks: list[RemovableHandle] = field(default_factory=list)

    def on_fit_start(self, trainer: pl.Trainer, module: FinetuneModule) -> None:
        """Look at every step, and at every gradient of a weight."""
        step = module.training_step
        shapes = [{*p.shape} for layer in layers_of(module.target) for p in layer.parameters() if p.dim() == 2]

        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        own = {parameter.data_ptr() for parameter in trained}

        def noted(*batch: Any) -> Tensor:
            saved: list[Tensor] = []

            def keep(tensor: Tensor) -> Tensor:
                saved.append(tensor)
                return tensor

            with saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = step(*batch)
            matrices = [t for t in saved if t.dim() == 2 and {*t.shape} in shapes and t.data_ptr() not in own]
            self.kept = max(self.kept, sum({t.untyped_storage()._cdata: size(t) for t in matrices}.values()))
            self.losses.append(loss.item())
            return loss

        module.training_step = noted

        def look(_: Tensor) -> None:
            self.whole = max(self.whole, whole_layers(module.target))

        self.hooks = [parameter.register_post_accumulate_grad_hook(look) for parameter in trained]

    def on_train_batch_end(self, trainer: pl.Trainer, module: FinetuneModule, *_: Any) -> None:
        """Look at what is held between steps."""
        self.between = max(self.between, whole_layers(module.target))
        if module.global_step == STEPS:
            self.held = held(3)
            for hook in self.hooks:
                hook.remove()


def size(tensor: Tensor) -> float:
    """MiB of what a tensor shows a part of; zero where FSDP has freed it."""
    return tensor.untyped_storage().nbytes() / 2**20


def whole_layers(target: Target) -> int:
    """How many layers are whole in this process."""
    return sum(any(type(p) is not DTensor for p in layer.parameters()) for layer in layers_of(target))


def layers_of(target: Target) -> list[nn.Module]:
    return list(target.anatomy.layers)


def texts(count: int) -> list[Text]:
    random = torch.Generator().manual_seed(count)
    rows = torch.randint(90, (count, PROMPT + ANSWER), generator=random).tolist()
    return [Text(f"{count}.{number}", row[:PROMPT], row[PROMPT:]) for number, row in enumerate(rows)]


def trained(case: Case, *, divided: bool) -> dict[str, Any]:
    """Train, and return what there is to compare."""
    gc.collect()
    before, notes, recipe = held(3), Notes(), RECIPES[case.recipe]
    torch.manual_seed(0)
    module = recipe(
        recipe.Config(batch_size=1, length=PROMPT + ANSWER, learning_rate=1e-2, **case.options),
        lambda _: Target(tiny_model(case.family, seed=2, hidden=HIDDEN), packed=False),
        draft_ids=case.draft_ids,
        seed=0,
        sharded=divided,
    )
    # An odd number of held-out rows: one process has fewer than the other.
    data = TextDataModule(
        texts(5), texts(3), length=PROMPT + ANSWER, longest_prompt=PROMPT, batch_size=1, steps=2 * case.accumulate
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=RANKS,
        # Small buckets: DDP begins to reduce while layers are still gathered, as it does in a large model.
        strategy=DDPStrategy(find_unused_parameters=True, bucket_cap_mb=BUCKET),
        precision=case.precision,
        accumulate_grad_batches=case.accumulate,
        max_steps=STEPS,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        plugins=[OwnProcesses()],
        callbacks=[notes],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    tensors = {name: t.detach() for name, t in module.adapter().tensors.items()}
    return {
        "tensors": {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()},
        "moved": any(bool(t.any()) for name, t in tensors.items() if name.endswith(".B")),
        "losses": notes.losses,
        "history": module.history,
        "kept": notes.kept,
        "whole": notes.whole,
        "between": notes.between,
        "held": notes.held - before,
        "layers": sum(p.numel() for each in layers_of(module.target) for p in each.parameters()) * 4 / 2**20,
    }


def main(rank: int, folder: Path) -> None:
    quiet()
    torch.set_num_threads(1)
    gc.freeze()  # what the imports made is not looked at again for tensors, which takes long
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=RANKS, timeout=PATIENCE)
    found = {
        name: {kind: trained(case, divided=kind == "divided") for kind in ("whole", "divided")}
        for name, case in CASES.items()
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
