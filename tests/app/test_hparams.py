"""conf/hparams has values to try for every drafter and path, and they compose."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from omegaconf import OmegaConf

from command_line import CONF, composed_with_hydra
from selfdraft.app.options.typed_config import to_config
from selfdraft.drafters import PATHS
from selfdraft.drafters.presets import PRESETS

ADAPTED = {name for name, path in PATHS.items() if "adapter" in path.Config.__dataclass_fields__}
FIXED = {"none", *ADAPTED}  # there is nothing to try, or only a path that was trained
NAMES = sorted(path.stem for path in (CONF / "hparams").glob("*.yaml"))


def test_every_drafter_and_path_has_values() -> None:
    assert PRESETS.keys() - FIXED <= set(NAMES)
    assert {f"path_{name}" for name in PATHS.keys() - FIXED - {"full"}} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_one_of_its_option(name: str) -> None:
    given = [f"hparams={name}", "model=tiny"]
    if name.startswith("path_"):
        given += ["drafter=jacobi", f"drafter/path={name.removeprefix('path_')}"]
    whole, task = composed_with_hydra(*given)
    params = whole.hydra.sweeper.params
    assert params
    for key, text in params.items():
        (parsed,) = OverridesParser.create().parse_overrides([f"{key}={text}"])
        sweep = parsed.value()
        assert isinstance(sweep, ChoiceSweep)
        for value in sweep.list:
            OmegaConf.update(task, key, getattr(value, "text", value))  # composing anew takes a hundred times as long
            to_config(task)
