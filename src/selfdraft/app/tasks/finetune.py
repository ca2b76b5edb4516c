"""task=finetune: train draft-only weights by a recipe, and write the artifact that later runs draft with."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from rich.console import Console
from rich.table import Table

from selfdraft.app.options.schemas import Config
from selfdraft.app.runs.build import refuse_a_run_that_cannot_fit
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.processes import OwnProcesses, OwnSignals
from selfdraft.app.runs.session import processes_of, quiet, shown
from selfdraft.core.errors import UserError
from selfdraft.core.messages import harmless
from selfdraft.core.paths import expanded_name
from selfdraft.data.distilled import Text, load_texts, split_by_prompt
from selfdraft.data.textmodule import TextDataModule
from selfdraft.models.families.anatomy import text_config
from selfdraft.models.families.parts import attribute
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import LoadedModel, moved
from selfdraft.models.measuring.memory import available
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.training.teacher import trainable
from selfdraft.modules.checkpoints import (
    BEST,
    CHECKPOINTS,
    LAST,
    Checkpoints,
    DataOnly,
    Patience,
    fitted,
    read_checkpoint,
)
from selfdraft.modules.finetune import START, WATCHED, FinetuneModule
from selfdraft.modules.progress import TrainingProgress
from selfdraft.modules.recipe_options import RecipeConfig
from selfdraft.modules.recipes import RECIPES
from selfdraft.tracking.display.picture import plot_training
from selfdraft.tracking.files.artifact import FILE, Artifact
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.entry_point import entry_point
from selfdraft.tracking.files.run_folder import digest


def finetune(run: Run) -> float | None:
    """Train, or resume the training that was interrupted in the run's folder.

    Returns:
        The objective: expected accepted tokens per draft on held-out prompts; None on ranks other than 0.

    Raises:
        UserError: something in configuration, model, data or folder cannot be used.
    """
    # Trained in float32, because bfloat16 would round small updates away. The adapter fits the model in any dtype.
    config, folder = replace(run.config, model=replace(run.config.model, dtype="float32", packed=False)), run.folder
    recipe = config.finetune
    if config.model.placed:
        raise UserError("task=finetune trains on one device, or in several processes: leave model.device_map out")
    if not recipe.data:
        raise UserError(
            "finetune.data must be given: the folder of a task=distill_data run, or several: 'finetune.data=[A,B]'"
        )
    if run.is_rank_zero:  # what it takes to run the model at all; `_memory_line` estimates the training
        refuse_a_run_that_cannot_fit(config, certify=False, rows=recipe.batch_size)
    device = torch.device(config.hardware.torch_device)
    loaded = config.model.load(torch.device("cpu"))
    texts, held_out = _texts(recipe.data, "finetune.data", loaded), _texts(recipe.held_out, "finetune.held_out", loaded)
    train, validation = (texts, held_out) if held_out else split_by_prompt(texts, recipe.validation, config.seed)
    data = TextDataModule(
        train,
        validation,
        length=recipe.length,
        longest_prompt=recipe.longest_prompt,
        batch_size=recipe.batch_size,
        # An epoch is the batches between two validations; the last step is validated even if it is the first to be.
        steps=min(recipe.validate_every, recipe.steps) * recipe.accumulate,
        seed=config.seed,
    )
    module = RECIPES[recipe.name](
        recipe,
        lambda place: trainable(Target(moved(loaded.model, place), packed=False)),
        draft_ids=_draft_ids(recipe, train, int(text_config(loaded.model).vocab_size)),
        seed=config.seed,
        sharded=config.hardware.shard_base,
    )
    last, best = folder / CHECKPOINTS / LAST, folder / CHECKPOINTS / BEST
    announcement = (
        f"fine-tuning by {recipe.name} for {config.model.label}: {_amount(train)} to learn from, "
        f"{_amount(validation)} held out, {len(data.train_rows)} rows of {recipe.length} tokens"
    )
    parts = config.hardware.devices if config.hardware.shard_base else 1
    memory = _memory_line(recipe, loaded, device, parts, len(data.train_rows) + len(data.validation_rows))
    model_print = fingerprint(loaded.model)  # taken here, while every process has the whole model
    facts = {"model": model_print, "finetune.data": digest([*texts, *held_out])}
    run.begin([announcement, memory], name=recipe.name, started=last, facts=facts)
    begun = last.exists()
    if begun:  # find a damaged checkpoint before other processes start and hours are spent
        for checkpoint in (last, best):
            read_checkpoint(checkpoint)
        run.console.print(f"resuming {shown(folder)} at its last checkpoint")
    trainer = _trainer(config, folder, run.console, run.logger)
    with processes_of(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=str(last) if begun else None, weights_only=True)
        objective = _conclude(config, module, folder, run.console, model_print) if run.is_rank_zero else None
        trainer.strategy.barrier("the artifact is written")
    run.console.print(f"draft with it:  {entry_point(sys.argv[0])} drafter.from={shown(folder)}")
    return objective


def _draft_ids(recipe: RecipeConfig, texts: Sequence[Text], size: int) -> list[int] | None:
    """Return the token ids that drafts may contain: those of the weights to begin with, or the most frequent ones."""
    if recipe.start is None:
        return frequent(texts, recipe.vocabulary, size)
    ids = Adapter.read(expanded_name(recipe.start, START), START).tensors.get("vocabulary")
    return None if ids is None else ids.tolist()


def _texts(sources: Sequence[str], option: str, loaded: LoadedModel) -> list[Text]:
    """Return all texts of all sources; prompts with the same id in two sources are the same prompt.

    Raises:
        UserError: a source cannot be read; the message begins with the option that names it.
    """
    encode = loaded.tokenizer.encode
    vocabulary = attribute(loaded.model.get_input_embeddings(), "num_embeddings", int)
    # Neither a shell nor `with_home` expands ~ in the items of a list.
    paths = [expanded_name(path, option) for path in sources]
    try:
        return [text for path in paths for text in load_texts(path, encode, vocabulary=vocabulary)]
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def frequent(texts: Sequence[Text], count: int | None, size: int) -> list[int] | None:
    """Return the `count` most frequent token ids, filled up with the lowest other ids; None if that is all of them."""
    if count is None or count >= size:
        return None
    seen = Counter(token for text in texts for token in (*text.prompt, *text.answer))
    chosen = [token for token, _ in seen.most_common(count)]
    rest = (token for token in range(size) if token not in seen)
    return [*chosen, *(next(rest) for _ in range(count - len(chosen)))]


def _amount(texts: Sequence[Text]) -> str:
    return f"{len(texts)} texts ({sum(len(t.prompt) + len(t.answer) for t in texts):,} tokens)"


def _memory_line(recipe: RecipeConfig, loaded: LoadedModel, device: torch.device, parts: int, rows: int) -> str:
    """Return one line of estimated memory: weights, activations kept for the backward pass, logits, teacher outputs.

    Args:
        parts: number of processes that divide the layers among them. rows: texts whose teacher outputs are kept.
    """
    config = loaded.model.config
    ends = [loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings()]
    whole = {p for end in ends if end is not None for p in end.parameters()}
    weights = sum(4 * p.numel() // (1 if p in whole else parts) for p in loaded.model.parameters())
    tokens = recipe.batch_size * recipe.length
    wide = 12 * config.hidden_size + 4 * getattr(config, "intermediate_size", 4 * config.hidden_size)
    steps = 4 * tokens * config.num_hidden_layers * wide
    logits = 3 * 4 * tokens * (recipe.vocabulary or config.vocab_size)
    # For each token two hidden states, keys and values of at most all layers, in bfloat16 (see `TeacherOutputStore`).
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * (2 * config.hidden_size + 2 * config.num_hidden_layers * heads * size)
    remembered = rows * recipe.length * token if recipe.remember else 0
    total = weights + steps + logits + remembered
    return (
        f"memory: at most about {total / 1e6:,.0f} MB (weights {weights / 1e6:,.0f}, layers {steps / 1e6:,.0f}, "
        f"logits {logits / 1e6:,.0f}, teacher outputs {remembered / 1e6:,.0f}); "
        f"{available(device) / 1e6:,.0f} MB are free"
    )


def _trainer(config: Config, folder: Path, console: Console, logger: Any) -> pl.Trainer:
    quiet()
    recipe, hardware = config.finetune, config.hardware
    callbacks: list[pl.Callback] = [
        OwnSignals(),
        Checkpoints(folder / CHECKPOINTS, WATCHED),
        Patience(WATCHED, recipe.patience),
        TrainingProgress(console, recipe.steps),
    ]
    if recipe.minutes is not None:
        callbacks.append(Timer(timedelta(minutes=recipe.minutes), verbose=False))
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        # The weights of layers that are dropped get no gradients.
        strategy="ddp_find_unused_parameters_true" if hardware.strategy == "ddp" else hardware.strategy,
        precision=recipe.precision,  # type: ignore[arg-type]  # `option` checks that it is one of the choices
        use_distributed_sampler=False,
        callbacks=callbacks,
        plugins=[DataOnly(), OwnProcesses()],
        max_steps=recipe.steps,
        accumulate_grad_batches=recipe.accumulate,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        default_root_dir=folder,
        logger=logger or False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _conclude(config: Config, module: FinetuneModule, folder: Path, console: Console, model_print: str) -> float:
    """Restore the best weights, write the artifact, the results and the training's picture; return the objective."""
    history, path = module.history, folder / CHECKPOINTS / BEST
    saved = read_checkpoint(path)
    module.load_state_dict(fitted(saved, {"state_dict": module.state_dict()}, path)["state_dict"], strict=False)
    best = module.history_of(saved, path)[-1]
    module.adapter().write(folder)
    label = {
        "label": config.model.label,
        "dtype": "float32",
        "fingerprint": model_print,
    }
    objective = {
        "name": WATCHED,
        "method": config.finetune.name,
        "value": best[WATCHED],
        "acceptance_by_depth": best["acceptance_by_depth"],
        "step": best["step"],
        "data": list(config.finetune.data),
    }
    options = {"adapter": ".", **module.options()}
    Artifact(module.drafter, options, label, objective, history).write(folder / FILE)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    result = {"task": "finetune", "objective": best[WATCHED], **objective, "trained_parameters": trained}
    write_json_atomic(folder / "result.json", {**result, "history": history})
    with harmless("result.png was not drawn"):
        plot_training(history, WATCHED, folder / "result.png")
    table = Table(box=None, pad_edge=False)
    for name in ("step", "expected accepted", *(f"depth {d + 1}" for d in range(len(best["acceptance_by_depth"])))):
        table.add_column(name, justify="right")
    for line in history:
        rates = (f"{rate:.3f}" for rate in line["acceptance_by_depth"])
        table.add_row(str(line["step"]), f"{line[WATCHED]:.3f}", *rates, style="bold" if line == best else None)
    console.print(table)
    console.print(f"{trained:,} trained parameters, the best of them of step {best['step']}: {shown(folder)}/{FILE}")
    return best[WATCHED]
