"""task=evaluate: decode a dataset with the drafter and the baseline, compare them, and write result files."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.text import Text

from selfdraft.app.build import build_bench, measured_config, refuse_a_run_that_cannot_fit, use_threads
from selfdraft.app.console import make_console
from selfdraft.app.schemas import Config, EvaluateConfig
from selfdraft.app.session import adapter_facts, owned, quiet_trainer, resumable, shown, tell_resumed
from selfdraft.core.errors import UserError
from selfdraft.core.messages import harmless
from selfdraft.data.datamodule import PromptDataModule
from selfdraft.data.prompts import Prompt
from selfdraft.decoding.stopping import POSITIONS
from selfdraft.modules.evaluate import EvaluateModule
from selfdraft.modules.progress import EvaluationProgress
from selfdraft.tracking.atomic import write_json_atomic
from selfdraft.tracking.environment import describe_environment
from selfdraft.tracking.lines import measured
from selfdraft.tracking.loggers import close_logger, how_to_look, log_result, make_logger
from selfdraft.tracking.picture import plot_result
from selfdraft.tracking.records import merge_rank_files
from selfdraft.tracking.run_folder import claim_run_dir
from selfdraft.tracking.summary import mismatches, summarize
from selfdraft.tracking.table import print_result

BATCHES_A_STEP = 4


def evaluate(config: Config, composed: DictConfig, folder: Path) -> float | None:
    """Run an evaluation in `folder`, or resume the one that was interrupted there.

    Returns:
        The objective, the median speedup; None on ranks other than 0.

    Raises:
        UserError: something in configuration, model, data or folder cannot be used.
        SystemExit: status 1 after a mismatch, 130 after Ctrl-C.
    """
    task = config.task
    assert isinstance(task, EvaluateConfig)
    is_rank_zero = rank_zero_only.rank in (None, 0)
    console = make_console(quiet=not is_rank_zero, soft_wrap=True)
    if config.drafter.state == "warm" and task.repeats > 1:
        raise UserError(
            f"task.repeats={task.repeats} with drafter.warm=true: repeats would draft from the answers of the first; "
            "leave one of them out"
        )
    prompts = config.dataset.load()
    if is_rank_zero:  # the other ranks start later, and share this machine's memory
        refuse_a_run_that_cannot_fit(config, certify=True)
    use_threads(config.hardware)
    with owned(folder, is_rank_zero, task.name):
        if is_rank_zero:
            claim_run_dir(folder, measured_config(composed), task=task.name, facts=adapter_facts(config.drafter))
            write_json_atomic(folder / "environment.json", describe_environment(config.hardware.torch_device))
            _announce(console, config, prompts)
        logger = make_logger(
            config.logger.name,
            mode=config.logger.mode,
            project=config.logger.project,
            save_dir=folder,
            name=f"{config.drafter.label}-{folder.name}",
            config=measured_config(composed),
        )
        failed = True
        try:
            module = EvaluateModule(
                lambda device: build_bench(config, device, task.references),
                prompts=prompts,
                folder=folder,
                repeats=task.repeats,
                seed=config.seed,
                shared=config.hardware.tree_parallel,
                tell=partial(tell_resumed, console, folder, len(prompts)),
            )
            batch_size = config.decoding.batch_size
            # Several batches per step, so that finished rows are refilled as in serving; without batches, one prompt.
            together = 1 if batch_size == 1 else BATCHES_A_STEP * batch_size
            data = PromptDataModule(prompts, together, shared=config.hardware.tree_parallel)
            _run(module, data, config, folder, console)
            if not is_rank_zero:
                return None
            objective = _conclude(config, folder, logger, console)
            failed = False
        finally:
            close_logger(logger, failed=failed)
    look = how_to_look(folder, config.logger.mode) if config.logger.name == "wandb" else ""
    console.print(f"results: {shown(folder)}")
    if look:
        console.print(look)
    return objective


def _run(module: EvaluateModule, data: PromptDataModule, config: Config, folder: Path, console: Console) -> None:
    trainer = quiet_trainer(config.hardware, folder, EvaluationProgress(console))
    with resumable(trainer, folder, console, "finished prompts are kept"):
        trainer.test(module, datamodule=data, verbose=False)
        trainer.strategy.barrier("every rank has written its prompts")


def _conclude(config: Config, folder: Path, logger, console: Console) -> float | None:
    lines = merge_rank_files(folder)
    turns = measured(lines)
    result = summarize(
        lines,
        task=config.task.name,
        model=config.model.label,
        drafter=config.drafter.label,
        drafter_memory=config.drafter.state,
        dataset=config.dataset.name,
        seed=config.seed,
        dtype=config.model.dtype,
        max_new_tokens=config.decoding.max_new_tokens,
        batch_size=config.decoding.batch_size,
        control=max((line["lossless"].get("control") or 0.0 for line in turns), default=0.0) or None,
    )
    result["objective"] = result["speedup"]["median"]
    write_json_atomic(folder / "result.json", result)
    print_result(result, console)
    # From here on a failure costs no result, so it prints a warning and the run's exit status stays.
    picture = folder / "result.png"
    with harmless("result.png was not drawn"):
        plot_result(result, picture)
    with harmless("the result was not logged"):
        log_result(logger, result, lines, picture if picture.exists() else None)
    if cut := sum(line.get("ended") == POSITIONS for line in turns):
        console.print(
            f"warning: {cut} of {len(turns)} answers ended before decoding.max_new_tokens="
            f"{config.decoding.max_new_tokens}, where the model had no more positions"
        )
    if wrong := mismatches(turns):
        console.print(
            Text("NOT LOSSLESS", "bold red"),
            f": mismatch in {'; '.join(wrong[:5])}; see {shown(folder)}/prompts.jsonl",
            sep="",
        )
        close_logger(logger, failed=True)
        sys.exit(1)
    return result["objective"]


def _announce(console: Console, config: Config, prompts: list[Prompt]) -> None:
    memory = "" if config.drafter.state == "none" else f" ({config.drafter.state})"
    processes = f", {config.hardware.devices} processes" if config.hardware.devices > 1 else ""
    batch = f", batch {config.decoding.batch_size}" if config.decoding.batch_size > 1 else ""
    console.print(
        f"{config.drafter.label}{memory} against autoregressive decoding: {len(prompts)} prompts of "
        f"{config.dataset.name}, {config.model.label} in {config.model.dtype}{batch}{processes}"
    )
