"""The index of all options says what the config classes say, and serves help and mistakes without slow imports."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from command_line import CONF, environment
from selfdraft.app.options.foresight import foresee
from selfdraft.app.options.schemas import SCHEMAS, Config, register_schemas
from selfdraft.app.terminal.option_index import FILE, register_index, written
from selfdraft.core.errors import UserError
from selfdraft.core.options import Options

# What a command prints first, and whether it has imported what takes seconds by then.
PROGRAM = """
import sys
from selfdraft.app.main import main
try:
    main()
finally:
    print(sorted({"torch", "transformers", "pytorch_lightning"} & sys.modules.keys()))
"""


@pytest.fixture
def registered() -> Any:
    """What the index registers, by group and name; the real schemas stand in its place again afterwards."""
    register_index(CONF)
    repo = ConfigStore.instance().repo

    def found(group: str, name: str) -> type[Options]:
        place = repo
        for part in filter(None, group.split("/")):
            place = place[part]
        return OmegaConf.get_type((place["schema"] if group else repo)[f"{name}.yaml"].node)

    yield found
    register_schemas()


def test_the_index_is_what_the_classes_say() -> None:
    assert (CONF / FILE).read_text(encoding="utf-8") == written(SCHEMAS, Config)


def test_every_option_has_the_type_default_and_range_of_the_real_one(registered: Any) -> None:
    real = {(group, cls.__name__): cls for group, classes in SCHEMAS.items() for cls in classes} | {
        ("", "schema"): Config
    }
    for (group, name), cls in (real | {("", "schema"): Config}).items():
        like = registered(group, name)
        types, hints = get_type_hints(like), get_type_hints(cls)
        assert [f.name for f in fields(like)] == [f.name for f in fields(cls)]
        for ours, theirs in zip(fields(like), fields(cls), strict=True):
            assert getattr(types[ours.name], "__name__", types[ours.name]) == getattr(
                hints[ours.name], "__name__", hints[ours.name]
            )
            assert ours.default == theirs.default
            limits = {k: list(v) if isinstance(v, tuple | frozenset) else v for k, v in theirs.metadata.items()}
            assert {k: v for k, v in ours.metadata.items() if v is not None} == {
                k: v for k, v in limits.items() if v is not None
            }
        assert like.config_group == cls.config_group


def test_ranges_hold_in_the_index(registered: Any) -> None:
    with pytest.raises(UserError, match=r"^drafter\.window=0: must be at least 1$"):
        registered("drafter", "JacobiConfig")(window=0)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["--help"], "SelfDraft: lossless"),
        (["drafter=jacobii"], "selfdraft: drafter=jacobii: no such choice (did you mean jacobi?)"),
        (["drafter.windoww=3"], "selfdraft: drafter.windoww: no such option (did you mean window?)"),
        (["drafter.window=0"], "selfdraft: drafter.window=0: must be at least 1"),
        (["-m", "drafter.window=0,3"], "selfdraft: drafter.window=0: must be at least 1"),
        (["drafter=swift", "drafter.path.sparsity=2"], "selfdraft: drafter.path.sparsity=2.0: must be below 1.0"),
        (["dataset=jsonl"], "selfdraft: dataset.path is needed"),
        (["drafter.sparsity=0.3"], "selfdraft: drafter.sparsity: a path has this option"),
        (["--cfg", "job"], "task:"),
    ],
)
def test_help_and_mistakes_import_nothing_slow(typed: list[str], line: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, *typed]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    told = done.stdout if done.returncode == 0 else done.stderr
    assert told.startswith(line), done.stderr
    assert done.stdout.rstrip().endswith("[]"), done.stdout[-200:]
    assert done.returncode == (0 if typed[0].startswith("--") else 2)


def test_of_a_sweep_the_first_job_is_checked() -> None:
    assert foresee(["-m", "drafter.window=3,0"], CONF)
    with pytest.raises(UserError, match="must be at least 1"):
        foresee(["-m", "drafter.window=0,3"], CONF)
