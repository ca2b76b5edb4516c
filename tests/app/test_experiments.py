"""conf/experiment has the studies of experiments/ as presets. test_config.py composes each; here their sweeps."""

from __future__ import annotations

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from command_line import CONF, ROOT, composed
from selfdraft.app.options.typed_config import to_config
from selfdraft.app.tasks.compare import contenders_of
from selfdraft.app.terminal.help import head_of

FILES = {path.stem: path for path in (CONF / "experiment").glob("*.yaml")}
PARTS = {name: yaml.safe_load(path.read_text()) for name, path in FILES.items()}
PARAMS = {
    name: part["hydra"]["sweeper"]["params"] for name, part in PARTS.items() if "sweeper" in part.get("hydra", {})
}


@pytest.mark.parametrize("name", FILES)
def test_the_head_is_its_command_and_names_the_study(name: str) -> None:
    head = head_of(FILES[name])
    assert head.startswith(f"@package _global_ python run.py {'-m ' * (name in PARAMS)}experiment={name}: ")
    study = head.partition("(experiments/")[2].partition(")")[0]
    assert name == "smoke" or (ROOT / "experiments" / study / "README.md").is_file()


@pytest.mark.parametrize("name", PARAMS)
def test_every_value_of_a_sweep_is_one_of_its_option(name: str) -> None:
    for key, values in PARAMS[name].items():
        (parsed,) = OverridesParser.create().parse_overrides([f"{key}={values}"])
        assert parsed.is_sweep_override()
        for value in str(values).split(","):
            to_config(composed(f"experiment={name}", f"{key}={value}"))


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if "contenders" in part.get("task", {})])
def test_every_contender_can_be_read(name: str) -> None:
    contenders = to_config(composed(f"experiment={name}")).task.contenders
    specs, references = contenders_of(contenders)
    assert len(specs) + len(references) == len(contenders)
