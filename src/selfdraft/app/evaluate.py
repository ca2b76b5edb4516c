"""task=evaluate: decode a dataset with the drafter and the baseline, and leave result files behind."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
from filelock import FileLock, Timeout
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console

from selfdraft.app.build import build_bench, measured_config, refuse_a_run_that_cannot_fit, use_threads
from selfdraft.app.console import make_console
from selfdraft.app.schemas import Config, EvaluateConfig
from selfdraft.core.errors import UserError
from selfdraft.data.datamodule import PromptDataModule
from selfdraft.data.prompts import Prompt
from selfdraft.modules.evaluate import EvaluateModule
from selfdraft.modules.progress import EvaluationProgress
from selfdraft.tracking.atomic import write_json_atomic
from selfdraft.tracking.environment import describe_environment
from selfdraft.tracking.loggers import close_logger, how_to_look, log_result, make_logger
from selfdraft.tracking.picture import plot_result
from selfdraft.tracking.records import merge_rank_files
from selfdraft.tracking.run_folder import claim_run_dir
from selfdraft.tracking.summary import summarize
from selfdraft.tracking.table import print_result

INTERRUPTED = 130  # what shells report after Ctrl-C


def evaluate(config: Config, composed: DictConfig, folder: Path) -> float | None:
    """Run an evaluation in `folder`, or go on with the one that was interrupted there.

    Returns:
        The objective, the median speedup; None on ranks other than 0.

    Raises:
        UserError: whatever in configuration, model, data or folder cannot be used.
        SystemExit: status 1 after a mismatch, 130 after Ctrl-C.
    """
    task = config.task
    assert isinstance(task, EvaluateConfig)
    is_rank_zero = rank_zero_only.rank in (None, 0)
    console = make_console(quiet=not is_rank_zero, highlight=False, soft_wrap=True)
    prompts = config.dataset.load()
    if is_rank_zero:  # the others start later, and share what there is
        refuse_a_run_that_cannot_fit(config, certify=True)
    use_threads(config.hardware)
    with _owned(folder, is_rank_zero):
        if is_rank_zero:
            finished = claim_run_dir(folder, measured_config(composed))
            write_json_atomic(folder / "environment.json", describe_environment(config.hardware.torch_device))
            _announce(console, config, prompts, finished, folder)
        logger = make_logger(
            config.logger.name,
            mode=config.logger.mode,
            project=config.logger.project,
            save_dir=folder,
            name=f"{config.drafter.name}-{folder.name}",
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
            )
            _run(module, PromptDataModule(prompts), config, folder, console)
            if not is_rank_zero:
                return None
            objective = _conclude(config, folder, logger, console)
            failed = False
        finally:
            close_logger(logger, failed=failed)
    look = how_to_look(folder, config.logger.mode) if config.logger.name == "wandb" else ""
    console.print(f"results: {_shown(folder)}")
    if look:
        console.print(look, markup=False)
    return objective


def _run(module: EvaluateModule, data: PromptDataModule, config: Config, folder: Path, console: Console) -> None:
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)  # its greetings, and its tips on workers
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    trainer = pl.Trainer(
        accelerator=config.hardware.accelerator,
        devices=config.hardware.devices,
        strategy=config.hardware.strategy,
        use_distributed_sampler=False,  # it would pad the last round: 11 prompts would count as 12
        callbacks=[EvaluationProgress(console)],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    try:
        trainer.test(module, datamodule=data, verbose=False)
    except (KeyboardInterrupt, SystemExit):
        console.print(
            f"\nstopped; finished prompts are kept: the same command with hydra.run.dir={_shown(folder)} goes on"
        )
        sys.exit(INTERRUPTED)
    trainer.strategy.barrier("every rank has written its prompts")


def _conclude(config: Config, folder: Path, logger, console: Console) -> float | None:
    lines = merge_rank_files(folder)
    result = summarize(
        lines,
        task=config.task.name,
        model=config.model.label,
        drafter=config.drafter.name,
        dataset=config.dataset.name,
        seed=config.seed,
        dtype=config.model.dtype,
        max_new_tokens=config.decoding.max_new_tokens,
        control=max((line["lossless"]["control"] or 0.0 for line in lines), default=0.0) or None,
    )
    result["objective"] = result["speedup"]["median"]
    plot_result(result, folder / "result.png")
    log_result(logger, result, lines, folder / "result.png")
    write_json_atomic(folder / "result.json", result)
    print_result(result, console)
    if result["lossless"]["mismatch"]:
        wrong = [f"{line['id']}/{line['turn']}" for line in lines if line["lossless"]["verdict"] == "mismatch"]
        console.print(
            f"[bold red]NOT LOSSLESS[/]: mismatch in {', '.join(wrong[:5])}; see {_shown(folder)}/prompts.jsonl"
        )
        close_logger(logger, failed=True)
        sys.exit(1)
    return result["objective"]


def _announce(console: Console, config: Config, prompts: list[Prompt], finished: list[dict], folder: Path) -> None:
    processes = f", {config.hardware.devices} processes" if config.hardware.devices > 1 else ""
    console.print(
        f"[bold]{config.drafter.name}[/] against autoregressive decoding: {len(prompts)} prompts of "
        f"{config.dataset.name}, {config.model.label} in {config.model.dtype}{processes}"
    )
    if finished:
        done = len({line["id"] for line in finished})
        console.print(f"resuming {_shown(folder)}: {done} of {len(prompts)} prompts were finished before")


class _owned:
    """The run's folder belongs to one run at a time: two would interleave their lines."""

    def __init__(self, folder: Path, is_rank_zero: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lock = folder, FileLock(folder / ".lock", timeout=0) if is_rank_zero else None

    def __enter__(self) -> None:
        if self.lock is not None:
            try:
                self.lock.acquire()
            except Timeout:
                raise UserError(f"{self.folder} is in use by another run: choose another hydra.run.dir") from None

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()


def _shown(folder: Path) -> str:
    """Relative where that is shorter: it is what people copy."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
