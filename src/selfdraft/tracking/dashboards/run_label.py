"""How a run is listed among others: its name, its group and tags, and the id by which it stays one run."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.run_folder import MARK

ID_FILE = "wandb-run.json"
SWEEP = "sweep"  # the task in the mark of a sweep's folder
MAX_TAG = 64  # characters of a tag, which is W&B's limit
# Config groups that only some tasks use. A table of runs has a column for each option, and these would be noise.
OWN_GROUPS = {
    "calibrate": ("calibrate",),
    "finetune": ("finetune",),
    "distill": ("distill_data",),
    "audit": ("audit",),
    "score": ("evaluate", "compare"),
    "decoding": ("evaluate", "compare", "advise", "generate", "trace", "distill_data", "calibrate"),
    "dataset": ("evaluate", "compare", "advise", "distill_data", "calibrate"),
    "drafter": ("evaluate", "generate", "trace", "profile", "distill_data", "calibrate", "export"),
}


@dataclass(frozen=True)
class RunLabel:
    """What a dashboard lists a run by.

    Attributes:
        name: unique among the runs of a project, because it has the folder's name.
        group: runs that belong together: the jobs of a sweep; None for a run by itself.
        job_type: the task.
        tags: the drafter, the model and the dataset, and those that the user gives.
        entity, notes: of the user: the account or team, and a text that is shown with the run.
    """

    name: str
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    entity: str | None = None
    notes: str | None = None

    @staticmethod
    def of(folder: Path, what: str, task: str, *, tags: tuple[str, ...], given: Mapping[str, Any]) -> RunLabel:
        """Return the label of the run in a folder.

        Args:
            what: runs, such as the drafter's name.
            tags: what the run is about.
            given: the logger's options `group`, `tags`, `entity` and `notes`.
        """
        sweep = sweep_of(folder)
        place = folder.name if sweep is None else f"{sweep.name}/{folder.name}"
        return RunLabel(
            name=f"{what}-{place}",
            group=given.get("group") or (None if sweep is None else sweep.name),
            job_type=task,
            tags=tuple(dict.fromkeys(tag[:MAX_TAG] for tag in (*tags, *given.get("tags", ())) if tag)),
            entity=given.get("entity"),
            notes=given.get("notes"),
        )


def sweep_of(folder: Path) -> Path | None:
    """Return the folder of the sweep whose job has this folder; None if it is the run of no sweep."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads((folder.parent / MARK).read_text(encoding="utf-8"))["task"] == SWEEP:
            return folder.parent
    return None


def id_in(folder: Path) -> str:
    """Return the id that a folder has; empty if it has none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / ID_FILE).read_text(encoding="utf-8"))["id"]
        if re.fullmatch(r"[0-9a-z]{8}", found):
            return found
    return ""


def run_id(folder: Path) -> str:
    """Return the id of the run in a folder, which a resumed run finds there again; a new one is kept there."""
    if found := id_in(folder):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    made = secrets.token_hex(4)
    write_json_atomic(folder / ID_FILE, {"id": made})
    return made


def shown_config(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the options of the groups that a task uses."""
    return {name: value for name, value in config.items() if task in OWN_GROUPS.get(name, (task,))}
