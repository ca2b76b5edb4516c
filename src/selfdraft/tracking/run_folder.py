"""Who a run's folder belongs to: one configuration, whose finished prompts are kept and never measured again."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from selfdraft.core.errors import UserError
from selfdraft.tracking.atomic import write_text_atomic
from selfdraft.tracking.records import PROMPTS, TEXTS, RecordFile, merge_rank_files, rank_files, record_path

_ABSENT = object()
_KEYS_NAMED = 3


def claim_run_dir(
    folder: Path, config: Mapping[str, Any], *, started: Path | None = None, name: str = PROMPTS
) -> list[dict[str, Any]]:
    """Take `folder` for a run of `config`, and return the lines that an earlier run of the same config finished.

    Writes config.yaml where nothing is finished yet, and gathers what other ranks have left.
    Rank 0 alone calls it, before any process appends.

    Args:
        folder: the run's folder (hydra.run.dir); created if need be.
        config: all that decides what is measured, and nothing else: without the folder itself and the logger.
        started: a file that, where it exists, shows as prompts do that a run has begun here.
        name: of the files that hold the finished lines (see `record_path`).

    Raises:
        UserError: the folder holds prompts that were measured with another config, or is damaged. It is left as it is.
    """
    folder = Path(folder)
    text = _as_yaml(config)
    path = folder / "config.yaml"
    begun = started is not None and started.exists()
    files = [f for n in (PROMPTS, TEXTS) for f in (record_path(folder, name=n), *rank_files(folder, name=n))]
    if begun or any(RecordFile(file).read() for file in files):
        _refuse_other_config(folder, path, yaml.safe_load(text))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, text)
    return merge_rank_files(folder, name=name)


def _as_yaml(config: Mapping[str, Any]) -> str:
    """Plain YAML that reads back equal: paths and the like as text, tuples as lists, interpolations resolved."""
    resolved = OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True, enum_to_str=True)
    return yaml.safe_dump(json.loads(json.dumps(resolved, default=str)), sort_keys=False, allow_unicode=True)


def _refuse_other_config(folder: Path, path: Path, now: Mapping[str, Any]) -> None:
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict):
        raise UserError(
            f"{folder} holds finished prompts but no readable config.yaml to compare with: choose another hydra.run.dir"
        )
    old, new = dict(_leaves(before)), dict(_leaves(now))
    differing = [name for name in old | new if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    if differing:
        shown = ", ".join(
            f"{name} {_show(old.get(name, _ABSENT))} there but {_show(new.get(name, _ABSENT))} now"
            for name in differing[:_KEYS_NAMED]
        )
        more = f", and {len(differing) - _KEYS_NAMED} more" if len(differing) > _KEYS_NAMED else ""
        raise UserError(
            f"{folder} holds prompts finished with another config ({shown}{more}): "
            "choose another hydra.run.dir, or give the same config to continue"
        )


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; lists are values, since a longer list is one change and not many."""
    if isinstance(config, Mapping) and (config or not prefix):
        for name, value in config.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, config


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
