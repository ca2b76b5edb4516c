"""drafter.learn=true in task=evaluate: the curve, the picture and the weights that it leaves; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from command_line import SMOKE, read_lines, read_result, run_here, said_by
from selfdraft.app.terminal.command_line import with_artifact
from selfdraft.core.errors import UserError
from selfdraft.models.trained.adapter import Adapter

DECODING = ("dataset.per_category=1", "decoding.max_new_tokens=16", "drafter.learn_every=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of finetune=exit_adapter of a few steps."""
    texts, folder = tmp_path_factory.mktemp("texts"), tmp_path_factory.mktemp("trained")
    run_here(texts, *SMOKE, "task=distill_data", "drafter=none", "dataset.per_category=2", "decoding.max_new_tokens=16")
    small = (
        "finetune.length=160",
        "finetune.batch_size=2",
        "finetune.validation=0.3",
        "finetune.steps=2",
        "finetune.validate_every=2",
    )
    shape = ("finetune.exit_layer=1", "finetune.twins=[3]", "finetune.feature=true", "finetune.vocabulary=null")
    run_here(folder, *SMOKE, "task=finetune", "finetune=exit_adapter", f"finetune.data=[{texts}]", *small, *shape)
    return folder


def test_an_evaluation_leaves_the_curve_and_weights_that_draft(trained: Path, tmp_path: Path) -> None:
    learn = (f"drafter.from={trained}", "drafter.learn=true", *DECODING)
    said = " ".join(said_by(tmp_path / "run", *with_artifact([*SMOKE, *learn])).split())
    result, lines = read_result(tmp_path / "run"), read_lines(tmp_path / "run")
    curve = result["learning"]
    assert curve["steps"] == sum(line["learning"]["steps"] for line in lines) > 0
    assert len(curve["acceptance_by_prompt"]) == len(lines)
    assert curve["learning_s"] > 0
    assert result["lossless"]["mismatch"] == 0
    assert f"learned in {curve['steps']} steps between prompts" in said and "engine: eager" in said
    assert (tmp_path / "run" / "learning.png").read_bytes()[:4] == b"\x89PNG"
    before, after = Adapter.read(trained), Adapter.read(tmp_path / "run")
    assert before.tensors.keys() == after.tensors.keys()
    assert not torch.equal(before.tensors["feature.weight"], after.tensors["feature.weight"])
    assert yaml.safe_load((tmp_path / "run" / "drafter.yaml").read_text())["options"]["adapter"] == "."
    run_here(tmp_path / "again", *with_artifact([*SMOKE, f"drafter.from={tmp_path / 'run'}", "dataset.limit=1"]))
    assert read_result(tmp_path / "again")["lossless"]["mismatch"] == 0
    with pytest.raises(UserError, match=r"has prompts of an earlier run; use a new folder$"):
        run_here(tmp_path / "run", *with_artifact([*SMOKE, *learn]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model.engine=native"], r"^model\.engine=native: drafter\.learn=true changes weights"),
        (["task.repeats=2"], r"^drafter\.learn=true: repeats would draft with what the first taught"),
        (["task=generate", "prompt=hello"], r"^drafter\.learn=true: only task=evaluate learns"),
        (["model.dtype=bfloat16"], r"^drafter\.learn=true trains in float32"),
    ],
)
def test_what_cannot_learn_is_refused_in_one_line(trained: Path, tmp_path: Path, options: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        learn = (f"drafter.from={trained}", "drafter.learn=true", "dataset.limit=1")
        run_here(tmp_path, *with_artifact([*SMOKE, *learn, *options]))
