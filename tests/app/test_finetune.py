"""task=finetune: from the model's own texts to a drafter; refused options; resuming an interrupted training."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from command_line import SMOKE, read_lines, read_result, run, run_here, said_by, start, wait_until
from payload import Payload
from selfdraft.app.terminal.command_line import with_artifact
from selfdraft.core.errors import UserError
from selfdraft.data.distilled import load_texts
from selfdraft.drafters.presets import PRESETS
from selfdraft.models.trained.adapter import FILE, Adapter
from selfdraft.modules.checkpoints import read_checkpoint
from selfdraft.modules.recipes import RECIPES

TASK = (*SMOKE, "task=finetune")
SMALL = ("finetune.length=160", "finetune.batch_size=2", "finetune.rank=4", "finetune.validation=0.3")
SHORT = (*SMALL, "finetune.steps=8", "finetune.validate_every=4", "finetune.learning_rate=0.01")
OF_FOUR_LAYERS = {
    "exit_adapter": ("finetune.exit_layer=2", "finetune.vocabulary=64"),
    "fused_jacobi": ("finetune.enter=2",),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished task=distill_data, with trajectories."""
    folder = tmp_path_factory.mktemp("texts")
    distill = ("task=distill_data", "drafter=none", "decoding.batch_size=4", "distill.trajectories=8")
    run_here(folder, *SMOKE, *distill, "dataset.per_category=2", "decoding.max_new_tokens=32")
    return folder


def training(data: Path, recipe: str, *more: str) -> tuple[str, ...]:
    """The arguments of a short training."""
    return (
        *TASK,
        f"finetune={recipe}",
        f"finetune.data=[{data}]",
        *SHORT,
        *OF_FOUR_LAYERS.get(recipe, ()),
        *more,
    )


def artifact(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "drafter.yaml").read_text())


def weights(folder: Path) -> dict[str, bytes]:
    """Of an adapter, by name."""
    return {name: tensor.numpy().tobytes() for name, tensor in Adapter.read(folder).tensors.items()}


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished training's folder and its printed output."""
    folder = tmp_path_factory.mktemp("tuned")
    return folder, " ".join(said_by(folder, *training(data, "sparse_distill")).split())


def test_the_artifact_holds_the_best_weights_and_the_whole_curve(made: tuple[Path, str], data: Path) -> None:
    folder, said = made
    written, result = artifact(folder), read_result(folder)
    assert written["drafter"] == "layer_skip"
    assert written["options"] == {"adapter": ".", "draft_length": 4}
    assert [line["step"] for line in written["history"]] == [4, 8]
    best = max(written["history"], key=lambda line: line["expected_accepted"])
    assert result["objective"] == best["expected_accepted"] == written["objective"]["value"]
    assert (result["step"], result["acceptance_by_depth"]) == (best["step"], best["acceptance_by_depth"])
    assert result["data"] == [str(data)]
    assert f"drafter.from={folder}" in said
    assert f"{result['trained_parameters']:,} trained parameters, the best of them of step {best['step']}" in said
    adapter = Adapter.read(folder)
    assert sum(t.numel() for t in adapter.tensors.values()) == result["trained_parameters"]
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["global_step"] == best["step"]
    ours = {tensor.double().sum().item() for tensor in adapter.tensors.values()}
    assert ours == {tensor.double().sum().item() for tensor in saved["state_dict"].values()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_with_the_artifact_drafts_with_the_adapter_and_gives_the_same_text(
    recipe: str, made: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    folder = made[0]
    if recipe != "sparse_distill":
        folder = tmp_path / "tuned"
        run_here(folder, *training(data, recipe, "finetune.steps=2", "finetune.validate_every=2"))
    few = ("dataset.limit=1", "decoding.max_new_tokens=8")
    run_here(tmp_path / "run", *with_artifact([*SMOKE, *few, f"drafter.from={folder}"]))
    config, lines = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()), read_lines(tmp_path / "run")
    drafter, preset = config["drafter"], PRESETS[artifact(folder)["drafter"]]
    assert drafter["name"] == preset.proposal
    if preset.path is not None:
        drafter = drafter["path"]
        assert drafter["name"] == (preset.path if preset.path == "jump" else "trained")
    assert Path(drafter["adapter"]).resolve() == folder.resolve()
    assert read_result(tmp_path / "run")["lossless"]["mismatch"] == 0
    assert sum(line["new_tokens"] for line in lines) >= 8


def test_the_adapter_s_weights_are_used_for_drafting(made: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    """More drafts are accepted on a text that it has learnt; a folder without the adapter is refused."""
    # One conversation is held out and all others are learnt by heart.
    known = ("finetune.validation=0.01", "finetune.steps=30", "finetune.validate_every=30", "finetune.rank=16")
    folder = tmp_path / "tuned"
    run_here(folder, *training(data, "sparse_distill", *known))
    skip = Adapter.read(folder).settings
    plain = [f"drafter.path.{name}={json.dumps(skip[name])}" for name in ("skip_attention", "skip_mlp")]
    rates = []
    for name, drafter in (("with", [f"drafter.from={folder}"]), ("without", ["drafter=layer_skip", *plain])):
        few = ("dataset.limit=2", "decoding.max_new_tokens=32")
        run_here(tmp_path / name, *with_artifact([*SMOKE, *few, *drafter]))
        rates.append(read_result(tmp_path / name)["tokens_per_forward"])
    assert rates[0] > rates[1] + 0.1
    (folder / FILE).unlink()
    with pytest.raises(UserError, match=r"there is no adapter\.safetensors there; give the folder"):
        run_here(tmp_path / "no", *with_artifact([*SMOKE, f"drafter.from={folder}"]))


def test_an_artifact_of_another_model_gives_one_clear_line(made: tuple[Path, str], tmp_path: Path) -> None:
    arguments = with_artifact([*SMOKE, "model.seed=1", f"drafter.from={made[0]}"])
    with pytest.raises(UserError, match=r"was made for tiny llama \(\w{16}\), but this model is tiny llama"):
        run_here(tmp_path, *arguments)


def test_equal_seeds_train_equal_weights_and_a_finished_training_is_not_repeated(
    made: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    run_here(tmp_path, *training(data, "sparse_distill"))
    assert artifact(tmp_path)["history"] == artifact(made[0])["history"]
    assert weights(tmp_path) == weights(made[0])
    said = said_by(tmp_path, *training(data, "sparse_distill"))
    assert "resuming" in said
    assert artifact(tmp_path)["history"] == artifact(made[0])["history"]
    assert weights(tmp_path) == weights(made[0])
    with pytest.raises(UserError, match=r"finetune\.rank 4 there but 3 now"):
        run_here(tmp_path, *training(data, "sparse_distill", "finetune.rank=3"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_begins_with_the_weights_of_an_earlier_one(recipe: str, data: Path, tmp_path: Path) -> None:
    """One that learns nothing ends where the earlier one did; validated on texts of its own."""
    run_here(tmp_path / "first", *training(data, recipe, "finetune.steps=2", "finetune.validate_every=2"))
    still = ("finetune.steps=1", "finetune.validate_every=1", "finetune.learning_rate=0")
    goes_on = training(data, recipe, *still, f"finetune.start={tmp_path / 'first'}", f"finetune.held_out=[{data}]")
    said = " ".join(said_by(tmp_path / "second", *goes_on).split())
    assert weights(tmp_path / "second") == weights(tmp_path / "first")
    texts = len(load_texts(data, encode=None, vocabulary=10_000))
    assert f"{texts} texts" in said.split(" to learn from, ")[0]
    assert f"{texts} texts" in said.split(" to learn from, ")[1].split(" held out")[0]


def test_weights_of_other_shapes_are_no_beginning(made: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    for recipe, option, reason in (
        ("sparse_distill", "rank=3", "it trained other weights: scale is"),
        ("exit_adapter", "rank=4", "it trained other weights: recipe is sparse_distill there and exit_adapter here"),
        ("sparse_distill", "keep_layers=[0,3]", "it trained other weights: skip_attention is"),
    ):
        options = (f"finetune.{option}", f"finetune.start={made[0]}")
        with pytest.raises(UserError, match=rf"^finetune\.start: {reason}"):
            run_here(tmp_path, *training(data, recipe, *options))
    with pytest.raises(UserError, match=r"^finetune\.start=/no/where: "):
        run_here(tmp_path, *training(data, "sparse_distill", "finetune.start=/no/where"))


def test_a_training_without_gains_stops_early_even_if_resumed(data: Path, tmp_path: Path) -> None:
    brief = ("finetune.steps=100", "finetune.validate_every=1", "finetune.patience=2")
    still = training(data, "sparse_distill", *brief, "finetune.learning_rate=0")
    for _ in range(2):
        run_here(tmp_path, *still)
        assert [line["step"] for line in artifact(tmp_path)["history"]] == [1, 2, 3]


@pytest.fixture
def copied(made: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of a finished training's folder."""
    return Path(shutil.copytree(made[0], tmp_path / "copied"))


def test_a_damaged_checkpoint_gives_one_clear_line_and_is_kept(data: Path, copied: Path) -> None:
    before, last = weights(copied), copied / "checkpoints" / "last.ckpt"
    genuine = last.read_bytes()
    flipped = bytearray(genuine)
    flipped[len(genuine) // 2] ^= 1  # of a tensor: torch would take it
    for damaged in (b"", b"no checkpoint", genuine[:200], bytes(flipped)):
        last.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last\.ckpt is damaged \(.*\): copy best\.ckpt, which lies beside it"):
            read_checkpoint(last)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged \(.*\): copy best\.ckpt, which lies beside it"):
        run_here(copied, *training(data, "sparse_distill"))
    assert last.read_bytes() == bytes(flipped)
    assert weights(copied) == before
    last.write_bytes((copied / "checkpoints" / "best.ckpt").read_bytes())
    assert "resuming" in said_by(copied, *training(data, "sparse_distill"))


def test_code_in_a_checkpoint_is_not_run(data: Path, copied: Path) -> None:
    """In any part of the checkpoint, and also in the file that is read after the training."""
    marker = copied / "marker"
    for name in ("best.ckpt", "last.ckpt"):  # the training reads last.ckpt first
        path = copied / "checkpoints" / name
        genuine = torch.load(path, weights_only=True)
        for planted in ({**genuine, "history": Payload(marker)}, {**genuine, "more": Payload(marker)}, Payload(marker)):
            torch.save(planted, path)
            with pytest.raises(UserError, match=r"it holds more than numbers and text, and that is not loaded"):
                read_checkpoint(path)
        with pytest.raises(UserError, match=rf"{name} is damaged \(it holds more than numbers and text"):
            run_here(copied, *training(data, "sparse_distill"))
        assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it would have


def test_a_copied_folder_resumes_with_its_own_weights(made: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    """It uses neither the original's files nor the folder's original path."""
    original, copy = (Path(shutil.copytree(made[0], tmp_path / name)) for name in ("original", "copy"))
    (original / "checkpoints" / "last.ckpt").unlink()
    torch.save({}, original / "checkpoints" / "best.ckpt")
    copy.rename(tmp_path / "moved")
    run_here(tmp_path / "moved", *training(data, "sparse_distill"))
    assert weights(tmp_path / "moved") == weights(made[0])
    for file in (tmp_path / "moved" / "checkpoints").iterdir():
        assert str(made[0]).encode() not in file.read_bytes()


def test_recorded_numbers_belong_to_the_recorded_weights(made: tuple[Path, str], data: Path, copied: Path) -> None:
    """If a run was killed between the two, best.ckpt may be of a later validation than last.ckpt."""
    other = torch.load(copied / "checkpoints" / "last.ckpt", weights_only=True)
    other["history"][-1]["expected_accepted"] = 3.0
    torch.save(other, copied / "checkpoints" / "best.ckpt")
    assert run_here(copied, *training(data, "sparse_distill")) == 3.0
    assert artifact(copied)["objective"]["step"] == 8
    ours = {tensor.double().sum().item() for tensor in Adapter.read(copied).tensors.values()}
    assert ours == {tensor.double().sum().item() for tensor in other["state_dict"].values()}


def test_a_checkpoint_of_another_training_gives_one_clear_line(data: Path, copied: Path) -> None:
    path = copied / "checkpoints" / "last.ckpt"
    genuine = torch.load(path, weights_only=True)
    for part, value in (("pytorch-lightning_version", "1.0.0"), ("callbacks", None)):  # no training would take these
        torch.save({**genuine, part: value}, path)
        with pytest.raises(UserError, match=r"last\.ckpt is damaged \(") as refused:
            read_checkpoint(path)
        assert part in str(refused.value) or "it was not written by Lightning" in str(refused.value)
    for part, value in (
        ("state_dict", {}),
        ("optimizer_states", []),
        ("lr_schedulers", [{"last_epoch": "20"}]),
        ("epoch", -1),
        ("history", [{"step": 10}]),
    ):
        torch.save({**genuine, part: value}, path)
        with pytest.raises(UserError, match=rf"last\.ckpt is damaged \(.*{part}"):
            run_here(copied, *training(data, "sparse_distill"))


def test_a_training_at_its_time_limit_ends_with_a_validation(data: Path, tmp_path: Path) -> None:
    brief = ("finetune.minutes=0.01", "finetune.steps=100000", "finetune.validate_every=100000")
    run_here(tmp_path, *training(data, "sparse_distill", *brief))
    assert len(artifact(tmp_path)["history"]) == 1


def test_fewer_steps_than_to_the_first_validation_are_validated_at_the_end(data: Path, tmp_path: Path) -> None:
    run_here(tmp_path, *training(data, "sparse_distill", "finetune.steps=2", "finetune.validate_every=50"))
    assert read_result(tmp_path)["step"] == 2


LONG = ("finetune.steps=8", "finetune.validate_every=2", "finetune.patience=99", "finetune.accumulate=2")


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("sparse_distill", signal.SIGKILL), pytest.param("consistency", signal.SIGINT, marks=pytest.mark.slow)],
)
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    recipe: str, kind: signal.Signals, data: Path, tmp_path: Path
) -> None:
    long = training(data, recipe, *LONG)
    run_here(tmp_path / "whole", *long)
    folder = tmp_path / "run"
    running = start(folder, *long)
    try:
        wait_until(running, (folder / "checkpoints" / "last.ckpt").exists)
    finally:
        os.killpg(running.pid, kind)
    out, err = running.communicate(timeout=60)
    assert not (folder / "drafter.yaml").exists()
    if kind == signal.SIGINT:
        assert running.returncode == 130
        assert f"the same command with hydra.run.dir={folder} goes on" in " ".join(out.split())
        assert "Traceback" not in out + err
    assert "resuming" in said_by(folder, *long)
    assert [line["step"] for line in artifact(folder)["history"]] == [2, 4, 6, 8]
    assert artifact(folder)["history"] == artifact(tmp_path / "whole")["history"]
    assert weights(folder) == weights(tmp_path / "whole")


INVALID = {
    "sparse_distill": (
        (["data=[]"], r"^finetune\.data must be given: the folder of a task=distill_data"),
        (["data=['~no-one-here/x']"], r"^finetune\.data=~no-one-here/x: there is no home folder"),
        (["data=[/no/where]"], r"^finetune\.data: Dataset '/no/where' could not be loaded \("),
        (["keep_layers=[0,7]"], r"^finetune\.keep_layers=\[7\]: this model's layers are 0 to"),
        (["skip_mlp=[1]", "exit_layer=2"], r"^finetune: give one of keep_layers, "),
        (["skip_mlp=[9]"], r"^finetune\.skip_mlp=\[9\]: this model's layers are 0 to 3$"),
        (["skip_from=/no/where"], r"^finetune\.skip_from=/no/where: No such file"),
        (["exit_layer=4"], r"^finetune\.exit_layer=4: this model has 4 layers; leave before"),
        (["longest_prompt=160"], r"^longest_prompt=160: must be .* below length=160$"),
        (["learning_rate=-1"], r"^finetune\.learning_rate=-1.*: must be at least 0"),
    ),
    "pseudo_tokens": (
        (["first_layer=4"], r"^finetune\.first_layer=4: this model has 4 layers; .* 0 to 3$"),
        (["matrices=[query]"], r"^finetune\.matrices: no layer .* has 'query'; there are down_proj, gate_proj, k_proj"),
    ),
    "fused_jacobi": (
        (["enter=4"], r"^finetune\.enter=4: this model has 4 layers; give one of 0 to 3$"),
        (["loss=l2"], r"^finetune\.loss=l2"),
    ),
    "jump": (
        (["copies=[0,3]"], r"^finetune\.copies.*must be at least 1"),
        (["copies=[3,4]"], r"^finetune\.copies=\[3, 4\]: this model has 4 layers; name some of 1 to 3$"),
    ),
    "exit_adapter": (
        (["twins=[1]"], r"^finetune\.exit_layer=2 with finetune\.twins=\[1\]: this model has layers 0 to 3"),
        (["exit_layer=4"], r"^finetune\.exit_layer=4 with finetune\.twins=\[3\]: this model has layers 0 to 3"),
    ),
}


@pytest.mark.parametrize("recipe", INVALID)
def test_invalid_trainings_give_one_clear_line(recipe: str, data: Path, tmp_path: Path) -> None:
    for options, reason in INVALID[recipe]:
        with pytest.raises(UserError, match=reason) as refused:
            run_here(tmp_path, *training(data, recipe, *(f"finetune.{option}" for option in options)))
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "drafter.yaml").exists()


def test_an_unfinished_data_folder_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "texts.jsonl").write_bytes((data / "texts.jsonl").read_bytes())
    with pytest.raises(UserError, match=r"^finetune\.data: .* holds a run of task=distill_data that is not finished"):
        run_here(tmp_path / "run", *training(tmp_path / "half", "sparse_distill"))


def test_a_folder_of_texts_that_is_not_there_is_refused_with_its_option(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^finetune\.data: .*nowhere' could not be loaded .*; give the folder"):
        run_here(tmp_path / "run", *training(tmp_path / "nowhere", "sparse_distill"))
    held_out = f"finetune.held_out=[{tmp_path / 'nowhere'}]"
    with pytest.raises(UserError, match=r"^finetune\.held_out: .*nowhere' could not be loaded"):
        run_here(tmp_path / "run", *training(data, "sparse_distill", held_out))


@pytest.mark.slow
def test_two_processes_train_together_and_write_one_artifact(data: Path, tmp_path: Path) -> None:
    options = training(data, "sparse_distill", "hardware=cpu_ddp", "finetune.layer_dropout=0.5")
    done = run(*options, f"hydra.run.dir={tmp_path}/two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.parent for path in tmp_path.rglob("drafter.yaml")] == [tmp_path / "two"]
    assert [path.parent for path in tmp_path.rglob(FILE)] == [tmp_path / "two"]
    assert done.stdout.count("draft with it: ") == 1
    assert [line["step"] for line in artifact(tmp_path / "two")["history"]] == [4, 8]
    assert len(load_texts(data)) > 0
    run_here(tmp_path / "run", *with_artifact([*SMOKE, "dataset.limit=1", f"drafter.from={tmp_path}/two"]))
    assert read_result(tmp_path / "run")["lossless"]["mismatch"] == 0
