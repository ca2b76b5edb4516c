"""Read the folders of runs: what was measured, and why a folder has nothing to show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.tracking.files.plain import NotPlain, read_plain_yaml
from selfdraft.tracking.files.records import Line, RecordFile, record_path
from selfdraft.tracking.files.run_folder import CONFIG, MARK
from selfdraft.tracking.numbers.lines import CONTENDERS, refuse_malformed
from selfdraft.tracking.report.sample import read_sample

RESULT, ENVIRONMENT = "result.json", "environment.json"
MEASURED, TRAINED = ("evaluate", "compare"), "finetune"  # the tasks whose results are shown
NEEDED = (
    "tokens_per_forward",
    "speedup_total",
    "lossless",
    "acceptance_by_depth",
    "phases_s",
    "by_category",
    "prompts",
)


@dataclass(frozen=True)
class RunFiles:
    """What a run's folder holds.

    Attributes:
        name: of the folder, as it is shown.
        result: result.json.
        config: config.yaml; empty if it cannot be read.
        environment: environment.json; empty if there is none.
        lines: of prompts.jsonl; empty if they cannot be read.
        sample: viewer.json.
    """

    name: str
    result: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    sample: Mapping[str, Any] = field(default_factory=lambda: {"turns": [], "texts": {}})

    @property
    def task(self) -> str:
        """Return the task of the run."""
        return str(self.result.get("task"))


@dataclass(frozen=True)
class Unread:
    """A folder of a run that has no result to show, and why."""

    name: str
    reason: str


def read_runs(folders: Sequence[Path]) -> tuple[list[RunFiles], list[Unread]]:
    """Return the runs in these folders, and the folders without a result."""
    found = [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    return [each for each in found if isinstance(each, RunFiles)], [each for each in found if isinstance(each, Unread)]


def folders_of(pattern: str) -> list[Path]:
    """Return the folders of runs that a glob pattern matches, those of a sweep included, in the order of their names.

    Raises:
        UserError: there is none.
    """
    path = Path(pattern).expanduser()
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    inside = path.relative_to(path.anchor) if path.is_absolute() else path
    matched = [path] if path.is_dir() else [found for found in anchor.glob(str(inside)) if found.is_dir()]
    found = [folder for match in sorted(matched) for folder in _runs_in(match)]
    if not found:
        raise UserError(f"task.runs: no folder of a run is at {pattern}: give folders of runs, or a pattern of them")
    return list(dict.fromkeys(found))


def _runs_in(folder: Path) -> list[Path]:
    """Return the folder if it is a run's; else the runs in it, as a sweep's folder has them."""
    if (folder / RESULT).is_file() or (folder / CONFIG).is_file():
        return [folder]
    inside = [each for each in folder.iterdir() if (each / MARK).is_file()]
    return sorted(inside, key=lambda each: (not each.name.isdigit(), each.name.zfill(9), each.name))


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a short name for each folder: its own, with its parent's where two are called the same."""
    own = [folder.name or str(folder) for folder in folders]
    return [
        f"{folder.parent.name}/{name}" if own.count(name) > 1 else name
        for folder, name in zip(folders, own, strict=True)
    ]


def _read(folder: Path, name: str) -> RunFiles | Unread | None:
    """Return what a folder holds; None if its task has nothing that is shown."""
    result = _json(folder / RESULT)
    if result is None:
        return Unread(name, "no result: the run failed, was stopped, or is still at work")
    task = result.get("task")
    if task == TRAINED and isinstance(result.get("history"), list):
        return RunFiles(name, result, _config(folder), _json(folder / ENVIRONMENT) or {})
    if task not in MEASURED or set(result) == {"task"}:  # a comparison of earlier runs only has no measures
        return None
    if not _is_measured(result):
        return Unread(name, "its result.json lacks measures: it is damaged, or of another version")
    lines = _lines(folder)
    return RunFiles(name, result, _config(folder), _json(folder / ENVIRONMENT) or {}, lines, read_sample(folder))


def _is_measured(result: Mapping[str, Any]) -> bool:
    found = result.get(CONTENDERS, {"": result})
    if not isinstance(found, dict) or not found:
        return False
    return all(isinstance(each, dict) and all(name in each for name in NEEDED) for each in found.values())


def _lines(folder: Path) -> list[Line]:
    try:
        lines = RecordFile(record_path(folder)).read()
        refuse_malformed(lines, folder)
    except (UserError, OSError):
        return []
    return list(lines)


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        found = read_plain_yaml(folder / CONFIG)
    except NotPlain:
        return {}
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
