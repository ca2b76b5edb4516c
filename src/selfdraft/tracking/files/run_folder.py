"""Claim a run's folder for one task and one configuration, so that finished lines are kept and not measured again.

The first file that a run writes is a mark, `selfdraft.json`. It has the task, and facts that the configuration does not
show, such as the fingerprint of the model. Nothing is written into a folder that has files but no mark, or the mark of
another task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from selfdraft import __version__
from selfdraft.core.errors import UserError
from selfdraft.tracking.files.atomic import write_json_atomic, write_text_atomic
from selfdraft.tracking.files.plain import NotPlain, read_plain_yaml
from selfdraft.tracking.files.records import NAMES, PROMPTS, RecordFile, merge_rank_files, rank_files, record_path

MARK, CONFIG, LOCK = "selfdraft.json", "config.yaml", ".lock"
RUN_DIR = "hydra.run.dir"
ANOTHER = f"choose another {RUN_DIR}"

# Files that a folder without a mark may have: the lock of a run that failed at once, Hydra's notes, and the output of
# the command itself, redirected to a file there. A run writes no file of these names.
_UNMARKED, _REDIRECTED = {LOCK, ".hydra"}, {".log", ".out", ".err"}
_NOTHING_YET = {
    MARK,
    LOCK,
    CONFIG,
    "environment.json",
    "status.json",
    "wandb-run.json",
}  # the files of a run that has measured nothing yet
_ABSENT = object()
_SHOWN = 3  # number of keys or files that a message names


@dataclass(frozen=True)
class Mark:
    """The content of `selfdraft.json`.

    Attributes:
        task: of the run.
        version: of SelfDraft, when the run began.
        facts: digests of the run's inputs that the configuration does not fix: model, adapter, prompts, texts.
    """

    task: str
    version: str = __version__
    facts: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the mark into the folder, which is made if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / MARK, asdict(self))

    @staticmethod
    def read(folder: Path) -> Mark | None:
        """Return the mark of a folder; None if there is none.

        Raises:
            UserError: the file is not a mark of ours.
        """
        path = folder / MARK
        try:
            plain = json.loads(path.read_bytes())
            if isinstance(plain["task"], str) and isinstance(plain["facts"], dict):
                return Mark(**plain)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise UserError(f"{path} is not the mark of a run of SelfDraft: {ANOTHER}")


def refuse_foreign(folder: Path, task: str, option: str = RUN_DIR) -> None:
    """Check that a run of `task` may write into `folder`, without writing. `option` is the one that names the folder.

    Raises:
        UserError: it holds files that no run has written, or the run of another task or of an earlier version.
    """
    if not folder.is_dir():
        return  # if it is a file, or a folder that cannot be read, the system refuses it later
    another = f"choose another {option}"
    names = {path.name for path in folder.iterdir()}
    mark = Mark.read(folder)
    foreign = sorted(name for name in names - _UNMARKED if Path(name).suffix not in _REDIRECTED)
    if mark is not None:
        if mark.task != task and not set(foreign) <= _NOTHING_YET:
            raise UserError(f"{folder} holds a run of task={mark.task}, and this is task={task}: {another}")
    elif foreign and _is_ours(folder / CONFIG):
        raise UserError(
            f"{folder} holds a run of an earlier version, which did not note its model and prompts: {another}"
        )
    elif foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        shown = ", ".join(foreign[:_SHOWN])
        raise UserError(f"{folder} holds files that no run has written ({shown}{more}): {another}")


def claim_run_dir(
    folder: Path,
    config: Mapping[str, Any],
    *,
    task: str,
    started: Path | None = None,
    name: str = PROMPTS,
    facts: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Claim `folder` for a run of `config`, and return the lines that an earlier run of the same config finished.

    It marks the folder and writes config.yaml if nothing is finished yet, and merges the files of other ranks. Only
    rank 0 calls it, before anything else is written and any process appends.

    Args:
        folder: the run's folder (hydra.run.dir); created if need be.
        config: all options that decide what is measured, and no others: not the folder itself and the logger.
        task: the name of the task.
        started: a file that shows, if it exists, that a run has begun here even without finished lines.
        name: of the files that hold the finished lines (see `record_path`).
        facts: see `Mark`; those that are known by now (for later ones see `confirm`).
        defaults: of the options of `config`. An earlier version may not have had an option yet; it then counts as
            having had its default.

    Raises:
        UserError: the folder is not ours, is another task's, is damaged, or has results of another config or of other
            facts. It is left unchanged.
    """
    folder, facts = Path(folder), dict(facts or {})
    refuse_foreign(folder, task)
    text = _as_yaml(config)
    path = folder / CONFIG
    begun = started is not None and started.exists()
    files = [f for n in NAMES for f in (record_path(folder, name=n), *rank_files(folder, name=n))]
    if Mark.read(folder) is not None and (begun or any(RecordFile(file).read() for file in files)):
        _refuse_other_config(folder, path, yaml.safe_load(text), yaml.safe_load(_as_yaml(defaults or {})))
        confirm(folder, facts)
    else:
        Mark(task, facts=facts).write(folder)
        write_text_atomic(path, text)
    return merge_rank_files(folder, name=name)


def confirm(folder: Path, facts: Mapping[str, str]) -> None:
    """Add new facts to the mark, and check that known ones have not changed. Only rank 0 calls it.

    Raises:
        UserError: a fact has changed since the run began.
    """
    mark = Mark.read(folder)
    assert mark is not None, "a folder is claimed first"
    for name, now in facts.items():
        if (before := mark.facts.get(name, now)) != now:
            raise UserError(
                f"{folder} was begun with another content of {name} ({before} there but {now} now): {ANOTHER}, or put "
                "back what it was begun with"
            )
    if not facts.keys() <= mark.facts.keys():
        Mark(mark.task, mark.version, {**mark.facts, **facts}).write(folder)


def digest(parts: Iterable[Any]) -> str:
    """Return 16 hexadecimal digits of a hash of the `repr` of each part."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(repr(part).encode("utf-8", "surrogatepass") + b"\n")
    return hashed.hexdigest()[:16]


def digest_of_file(path: Path) -> str:
    """Return 16 hexadecimal digits of a hash of a file's content; `absent` if there is no file."""
    if not path.is_file():
        return "absent"
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            hashed.update(part)
    return hashed.hexdigest()[:16]


def _is_ours(path: Path) -> bool:
    """Return whether a run seems to have written this config.yaml."""
    try:
        plain = read_plain_yaml(path)
    except NotPlain:
        return False
    return isinstance(plain, dict) and {"task", "model", "drafter", "decoding", "dataset"} <= plain.keys()


def _as_yaml(config: Mapping[str, Any]) -> str:
    """Return plain YAML that reads back equal: file paths and other objects as text, tuples as lists.

    Values that look like an interpolation, such as a prompt's, are text here and are not resolved (again).
    """
    return yaml.safe_dump(json.loads(json.dumps(dict(config), default=str)), sort_keys=False, allow_unicode=True)


def _refuse_other_config(folder: Path, path: Path, now: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    try:
        before = read_plain_yaml(path)
    except NotPlain:
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{folder} holds finished prompts but no readable config.yaml to compare with: {ANOTHER}")
    new = dict(_leaves(now))
    old = {name: value for name, value in _leaves(defaults) if name in new} | dict(_leaves(before))
    differing = [name for name in old | new if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    if differing:
        shown = ", ".join(
            f"{name} {_show(old.get(name, _ABSENT))} there but {_show(new.get(name, _ABSENT))} now"
            for name in differing[:_SHOWN]
        )
        more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise UserError(
            f"{folder} holds prompts finished with another config ({shown}{more}): "
            f"{ANOTHER}, or give the same config to continue"
        )


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values. A list is one value, so that a longer list is one difference and not many."""
    if isinstance(config, Mapping) and (config or not prefix):
        for name, value in config.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, config


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
