"""scripts/path_cost.py: what it times of a path, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from script_module import script_module
from selfdraft.core.skipset import SkipSet
from selfdraft.models.path import Path as ModelPath
from selfdraft.models.sparse import sparse_path
from selfdraft.models.target import Target
from selfdraft.models.tiny import tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def module():
    return script_module("path_cost")


@pytest.mark.parametrize(("first", "through"), [(2, {1: 2, 2: 2}), (0, {2: 4})])
def test_verification_takes_over_what_leading_layers_left(
    module, first: int, through: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tokens, the one that was drafted from has been through `first` of the four layers."""
    target = Target(tiny_model("llama"))
    target.allocate(1, 64)
    target.prefill(0, [3, 4, 5])
    with torch.inference_mode():
        jobs = module.cases(target, sparse_path(target, SkipSet.of(4, [first], [first])))
        assert list(jobs) == ["plain", "draft", "verify"]
        drive, seen = ModelPath.drive, {}

        def noting(path, runner, block, *args, since: int = 0, **more):
            tokens = block.tokens.shape[1] - since
            seen[tokens] = seen.get(tokens, 0) + len(path.layers)
            return drive(path, runner, block, *args, since=since, **more)

        monkeypatch.setattr(ModelPath, "drive", noting)
        jobs["verify"]()
    assert seen == through


def test_it_says_what_it_wants(module, capsys: pytest.CaptureFixture[str]) -> None:
    for folders, said in (([], "give the folders"), (["nowhere"], "there is no such file")):
        assert module.main(folders) == 2
        assert said in capsys.readouterr().err
