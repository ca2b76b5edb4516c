"""task=finetune with hardware.shard_base: what two processes train is the same with divided and with whole layers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from command_line import ROOT, SMOKE, ErrorLine, environment, read_result, run, run_here, start, wait_until
from forked import run_forked
from selfdraft.app.options.schemas import HardwareConfig
from selfdraft.app.terminal.command_line import with_artifact
from selfdraft.core.errors import UserError
from selfdraft.models.trained.adapter import Adapter
from selfdraft.modules.checkpoints import CHECKPOINTS, LAST

TWO, SHARDED = "hardware=cpu_ddp", "hardware.shard_base=true"
# In the place of run.py: every process notes how many tensors are divided, and whether held-out rows are unequal.
NOTED = """
import json, os
from torch.distributed.tensor import DTensor
from selfdraft.modules.finetune import FinetuneModule

def note(self):
    divided = sum(isinstance(each, DTensor) for each in self.target.model.parameters())
    rows = len(self.trainer.datamodule.validation_rows)
    with open(os.path.join({folder!r}, "rank" + str(self.global_rank)), "w") as file:
        json.dump({{"divided": divided, "unequal rows": rows % 2}}, file)

FinetuneModule.on_train_end = note
__file__ = {entry!r}
exec(compile(open(__file__).read(), __file__, "exec"))
"""
RECIPES = {
    "exit_adapter": ("finetune.exit_layer=2", "finetune.vocabulary=64", "finetune.remember=false"),
    "jump": ("finetune.copies=[2,3]", "finetune.vocabulary=64"),
    "fused_jacobi": ("finetune.enter=1", "finetune.sampler=16"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's answers to a few prompts."""
    folder = tmp_path_factory.mktemp("texts")
    distill = ("task=distill_data", "drafter=none", "decoding.batch_size=4")
    run_here(folder, *SMOKE, *distill, "dataset.per_category=1", "decoding.max_new_tokens=32")
    return folder


def training(data: Path, recipe: str, *more: str) -> list[str]:
    """A short training, in which one process has fewer held-out rows than the other."""
    return [
        *(*SMOKE, "task=finetune", f"finetune={recipe}", f"finetune.data=[{data}]", *RECIPES.get(recipe, ())),
        *("finetune.length=160", "finetune.batch_size=1", "finetune.validation=0.5", "finetune.steps=8"),
        *("finetune.validate_every=4", "finetune.learning_rate=0.01", *more),
    ]


def trained(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The trained weights, by name, and the validations."""
    tensors = Adapter.read(folder).tensors.items()
    history = json.loads((folder / "result.json").read_text())["history"]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors}, history


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_divided_layers_train_the_same_weights_as_whole_ones(recipe: str, data: Path, tmp_path: Path) -> None:
    script = tmp_path / "noted.py"
    script.write_text(NOTED.format(folder=str(tmp_path), entry=str(ROOT / "run.py")))
    whole, divided = (training(data, recipe, TWO, f"hydra.run.dir={tmp_path}/{name}") for name in ("whole", "divided"))
    done = run(*whole)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_forked(script, [*divided, SHARDED], cwd=ROOT, env=environment(), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    notes = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    assert notes[0]["divided"] == notes[1]["divided"] == 4 * 9  # in each of four layers, nine tensors
    assert notes[0]["unequal rows"] == 1
    assert trained(tmp_path / "divided") == trained(tmp_path / "whole")
    run_here(tmp_path / "run", *with_artifact([*SMOKE, "dataset.limit=1", f"drafter.from={tmp_path}/divided"]))
    assert read_result(tmp_path / "run")["lossless"]["mismatch"] == 0


@pytest.mark.slow
def test_a_killed_training_of_a_lora_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    given = training(data, "fused_jacobi", TWO, SHARDED)
    done = run(*given, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stdout + done.stderr
    running = start(killed, *given)
    wait_until(running, (killed / CHECKPOINTS / LAST).exists)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert not (killed / "result.json").exists()
    done = run(*given, f"hydra.run.dir={killed}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at its last checkpoint" in done.stdout
    assert trained(killed) == trained(whole)


def test_another_task_is_refused(error_line: ErrorLine) -> None:
    assert "hardware.shard_base=true divides the frozen model of task=finetune" in error_line(TWO, SHARDED)


def test_options_that_exclude_it_are_refused() -> None:
    with pytest.raises(UserError, match=r"shares layers among processes, and hardware\.devices=1 is one"):
        HardwareConfig(shard_base=True)
    for other in ("tree_parallel", "tensor_parallel"):
        with pytest.raises(UserError, match="leave tree_parallel and tensor_parallel out"):
            HardwareConfig("cpu_ddp", devices=2, strategy="ddp", shard_base=True, **{other: True})
