"""What tasks that take a while share: a folder of their own, and a Lightning Trainer that keeps quiet."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
from filelock import FileLock, Timeout

from selfdraft.app.schemas import HardwareConfig
from selfdraft.core.errors import UserError

INTERRUPTED = 130  # what shells report after Ctrl-C


def quiet_trainer(hardware: HardwareConfig, folder: Path, progress: pl.Callback) -> pl.Trainer:
    """A Trainer without checkpoints, loggers, samplers or greetings of its own."""
    quiet()
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy=hardware.strategy,
        use_distributed_sampler=False,  # it would pad the last round: 11 prompts would count as 12
        callbacks=[progress],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def quiet() -> None:
    """Keep Lightning's greetings, and its tips on workers, to itself."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


class owned:
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


def shown(folder: Path) -> str:
    """Relative where that is shorter: it is what people copy."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
