"""jobs.json in a sweep's folder: which job has which folder and how it ended, so that a sweep can be gone on with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from selfdraft.app.sweeps.sweep_table import split_override
from selfdraft.tracking.dashboards.run_label import OWN_GROUPS
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.run_folder import digest

INDEX = "jobs.json"
PENDING, COMPLETED, PRUNED = "pending", "completed", "pruned"
OF_ONE_TASK = ("calibrate", "finetune", "distill", "audit")  # config groups that no other task reads
MAX_NAME = 120  # characters of a folder's name, which many file systems limit to 255 bytes
_UNSAFE = re.compile(r"[^\w.,=+-]+")


@dataclass
class JobRecord:
    """A job of a sweep.

    Attributes:
        identity: digest of its configuration. A job with the same one is the same job.
        overrides: as in the command.
        status: pending, completed, failed (…), pruned or interrupted.
        reason: why it failed or was pruned, in one line; empty otherwise.
        seconds: that it took.
    """

    identity: str
    overrides: list[str]
    status: str = PENDING
    reason: str = ""
    seconds: float = 0.0


class SweepIndex:
    """The jobs of a sweep's folder by the names of their folders; written after every change."""

    def __init__(self, folder: Path) -> None:
        """Read what an earlier sweep in this folder has left."""
        self.path = folder / INDEX
        self.jobs: dict[str, JobRecord] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.jobs = {name: JobRecord(**job) for name, job in found.items()}

    def place(self, identity: str, overrides: Sequence[str], wanted: str) -> str:
        """Return the name of a job's folder: the one that it has, or `wanted`, with a number where that is taken."""
        for name, job in self.jobs.items():
            if job.identity == identity:
                return name
        name, number = wanted, 1
        while name in self.jobs:
            number += 1
            name = f"{wanted}-{number}"
        self.jobs[name] = JobRecord(identity, list(overrides))
        return name

    def claim(self, identity: str, overrides: Sequence[str], name: str) -> str:
        """Give a job the folder that the user wants, and return its name. Another job's result does not count."""
        if name not in self.jobs or self.jobs[name].identity != identity:
            self.jobs[name] = JobRecord(identity, list(overrides))
        return name

    def finish(self, name: str, status: str, reason: str, seconds: float) -> None:
        """Note how a job ended, and save the index."""
        job = self.jobs[name]
        job.status, job.reason, job.seconds = status, reason, round(seconds, 2)
        write_json_atomic(self.path, {name: asdict(job) for name, job in self.jobs.items()})

    def is_finished(self, name: str) -> bool:
        """Return whether a job needs no other start: it has completed or was pruned, and still has its folder."""
        return self.jobs[name].status in (COMPLETED, PRUNED) and (self.path.parent / name).is_dir()


def identity_of(config: Mapping[str, Any]) -> str:
    """Return a digest of a job's configuration: of all that can change what is measured.

    The logger cannot, and neither can the options of other tasks. A version of SelfDraft that adds one of these would
    otherwise start finished jobs anew.
    """
    task = config["task"]["name"] if isinstance(config.get("task"), Mapping) else None
    others = {group for group in OF_ONE_TASK if task is not None and task not in OWN_GROUPS[group]}
    measured = {key: value for key, value in config.items() if key not in {"logger", *others}}
    return digest([json.dumps(measured, sort_keys=True, default=str)])


def varying_keys(overrides: Sequence[str], parameters: Sequence[str]) -> set[str]:
    """Return the keys that a sweep varies.

    They do not depend on how many values a key has so far, so that a sweep can be enlarged.

    Args:
        overrides: of the whole sweep, such as `drafter.window=4,8`.
        parameters: keys of `hydra.sweeper.params`.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.key_or_group for override in parsed if override.is_sweep_override()} | set(parameters)


def folder_name(overrides: Sequence[str], varying: set[str]) -> str:
    """Return a name for a job's folder from what differs between jobs, such as `window=4,refine_steps=2`."""
    settings = dict(map(split_override, overrides))
    shown = {key: value for key, value in settings.items() if key in varying} or settings
    parts = [f"{_short(key, shown)}={value}" for key, value in shown.items()]
    plain = ",".join(parts) or "all"
    name = _UNSAFE.sub("-", plain).strip("-.")
    if name != plain or len(name) > MAX_NAME:  # several texts could become the same name
        name = f"{name[:MAX_NAME]}~{digest([plain])[:6]}"
    return name


def _short(key: str, others: Mapping[str, str]) -> str:
    """Return the last part of a key, or more of it where another key ends in the same way."""
    parts = re.split(r"[./]", key)
    for count in range(1, len(parts)):
        ends = tuple(parts[-count:])
        if sum(tuple(re.split(r"[./]", other)[-count:]) == ends for other in others) == 1:
            return ".".join(ends)
    return ".".join(parts)
