"""Tells W&B what a run has used and what it has made: texts → trained or searched drafter → evaluation that used it.

A piece is named by its content, so the run that made it and those that use it name it alike, on any machine. W&B draws
the graph from that. An offline run cannot declare an input, so its configuration also lists the names (`inputs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytorch_lightning.loggers import Logger, WandbLogger

from selfdraft.models.trained.adapter import FILE as WEIGHTS
from selfdraft.tracking.files.artifact import FILE as DRAFTER
from selfdraft.tracking.files.rank import process_rank
from selfdraft.tracking.files.records import TEXTS
from selfdraft.tracking.files.run_folder import digest, digest_of_file

if TYPE_CHECKING:
    import wandb

FILES = {"texts": (f"{TEXTS}.jsonl",), "drafter": (DRAFTER, WEIGHTS)}  # by kind; the first one has to be there


@dataclass(frozen=True)
class Piece:
    """Files in a run's folder that another run can use.

    Attributes:
        kind: a key of `FILES`.
        files: those that are there.
    """

    kind: str
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The kind and a digest of the content."""
        return f"{self.kind}-{digest([digest_of_file(file) for file in self.files])[:12]}"

    def artifact(self) -> wandb.Artifact:
        """Return it as W&B takes it."""
        import wandb

        made = wandb.Artifact(self.name, type=self.kind)
        for file in self.files:
            made.add_file(str(file), policy="immutable")  # sent from where it lies, without a copy
        return made


def pieces_in(place: Path) -> list[Piece]:
    """Return the pieces in a run's folder, or in that of a file."""
    folder = place if place.is_dir() else place.parent
    found = []
    for kind, (needed, *more) in FILES.items():
        if (folder / needed).is_file():
            files = (folder / needed, *(folder / name for name in more if (folder / name).is_file()))
            found.append(Piece(kind, files))
    return found


def log_lineage(logger: Logger | None, used: Sequence[Path], made: Path) -> None:
    """Declare what a run has used and made, on rank 0; other loggers than W&B's have no such thing.

    Args:
        used: files or folders that were given to the run. What no run of ours has made is left out.
        made: the run's folder.
    """
    if not isinstance(logger, WandbLogger) or process_rank() != 0:
        return
    run = logger.experiment
    inputs = [piece for place in used for piece in pieces_in(place)]
    if inputs:
        run.config.update({"inputs": [piece.name for piece in inputs]}, allow_val_change=True)
    if not run.offline:
        for piece in inputs:
            run.use_artifact(piece.artifact())
    for piece in pieces_in(made):
        run.log_artifact(piece.artifact())
