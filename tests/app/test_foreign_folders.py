"""A run writes only into its own folder: files of others are never removed, replaced or extended."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from command_line import ROOT, SMOKE, environment, read_lines, run, run_here
from forked import Forked
from selfdraft.core.errors import UserError
from selfdraft.data.distilled import write_dataset
from selfdraft.tracking.files.run_folder import refuse_foreign

FAST = (*SMOKE, "dataset.limit=1", "decoding.max_new_tokens=4")
CALIBRATE = ("task=calibrate", "drafter=layer_skip", "calibrate.method=random", "calibrate.trials=2")
TASKS = {
    "evaluate": (*FAST, "drafter=none"),
    "distill_data": (*FAST, "task=distill_data", "drafter=none"),
    "calibrate": (*FAST, *CALIBRATE, "calibrate.prompts=2", "calibrate.tokens=8", "calibrate.check=0"),
    "trace": (*FAST, "task=trace", "drafter=none"),
}


def contents(folder: Path) -> dict[str, str]:
    """Every file below the folder, with a digest of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each task."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in TASKS}
    for name, folder in folders.items():
        run_here(folder, *TASKS[name])
    return folders


FILES = ["config.yaml", "result.json", "dataset/photo.jpg", "trace.json", "notes"]


@pytest.mark.parametrize(("task", "files"), [(task, FILES if task == "evaluate" else FILES[-1:]) for task in TASKS])
def test_a_folder_with_the_user_s_files_is_refused_and_not_changed(tmp_path: Path, task: str, files: list[str]) -> None:
    for file in files:
        path = tmp_path / Path(file).parts[0] / file
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        folder, name = tmp_path / Path(file).parts[0], Path(file).parts[0]
        with pytest.raises(UserError, match=rf"holds files that no run has written \({name}\): choose another"):
            run_here(folder, *TASKS[task])
        assert contents(folder) == {file: hashlib.sha256(b"mine").hexdigest()}


def test_hydra_adds_nothing_to_a_refused_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = run(*FAST, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == (
        f"selfdraft: {tmp_path} holds files that no run has written (notes.txt): choose another hydra.run.dir\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("first", "second"), zip(TASKS, [*list(TASKS)[1:], "evaluate"], strict=True))
def test_a_folder_of_another_task_is_refused(finished: dict[str, Path], first: str, second: str) -> None:
    before = contents(finished[first])
    with pytest.raises(UserError, match=f"holds a run of task={first}, and this is task={second}: choose another"):
        run_here(finished[first], *TASKS[second])
    assert contents(finished[first]) == before


def test_the_folder_of_a_failed_run_can_be_used_by_any_task(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        run_here(tmp_path, *FAST, "model=hf", f"model.path={tmp_path}/nowhere")
    run_here(tmp_path, *TASKS["distill_data"])
    assert (tmp_path / "texts.jsonl").exists()


def test_output_redirected_into_the_folder_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "slurm-1.out").write_text("said so far")
    run_here(tmp_path, *TASKS["trace"])
    assert (tmp_path / "slurm-1.out").read_text() == "said so far"


def test_a_folder_of_an_earlier_version_gives_one_clear_line(finished: dict[str, Path], tmp_path: Path) -> None:
    for file in finished["evaluate"].iterdir():
        if file.is_file() and file.name != "selfdraft.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds a run of an earlier version.*choose another"):
        run_here(tmp_path, *TASKS["evaluate"])
    assert contents(tmp_path) == before


MARKS = ["", "{}", "[1]", '{"task": 1, "facts": {}}', '{"task": "evaluate", "facts": {}, "x": 1}', "[" * 100_000]


def test_an_invalid_mark_is_refused(tmp_path: Path) -> None:
    for mark in MARKS:
        (tmp_path / "selfdraft.json").write_text(mark)
        with pytest.raises(UserError, match=r"selfdraft\.json is not the mark of a run"):
            refuse_foreign(tmp_path, "evaluate")
        assert (tmp_path / "selfdraft.json").read_text() == mark
    with pytest.raises(UserError, match=r"selfdraft\.json is not the mark of a run"):
        run_here(tmp_path, *TASKS["evaluate"])
    assert [path.name for path in tmp_path.iterdir()] == ["selfdraft.json"]


def test_a_user_s_dataset_folder_in_a_run_folder_is_never_replaced(finished: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_here(folder, *TASKS["distill_data"])
    (folder / "dataset" / "photo.jpg").write_text("mine")
    before = contents(folder / "dataset")
    with pytest.raises(UserError, match=r"dataset was not written by task=distill_data.*move it elsewhere"):
        run_here(folder, *TASKS["distill_data"])
    with pytest.raises(UserError, match="was not written"):
        write_dataset([], folder)
    assert contents(folder / "dataset") == before


def test_our_own_dataset_folder_is_written_again(tmp_path: Path) -> None:
    line = {"id": "a", "category": "c", "turn": 0, "prompt_ids": [1], "output_ids": [2], "text": "t"}
    write_dataset([line], tmp_path)
    write_dataset([line, {**line, "turn": 1}], tmp_path)
    assert json.loads((tmp_path / "dataset" / "dataset_info.json").read_text())["description"]
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.parametrize("below", ["", "/below/it"])
def test_a_run_folder_at_or_below_a_file_gives_one_clear_line(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    done = run(*FAST, f"hydra.run.dir={tmp_path}/file{below}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"selfdraft: {tmp_path}/file")
    assert done.stderr.endswith("there is a file where a folder is needed: use another folder\n")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_runs_of_the_same_second_have_different_folders(tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(Path(__file__).parents[2] / "conf")
    starting = [Forked(ROOT / "run.py", FAST, cwd=tmp_path, env=environment()) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in starting]
    assert [process.returncode for process in starting] == [0, 0], said
    folders = list((tmp_path / "outputs").iterdir())
    assert len(folders) == 2
    assert all(len(read_lines(folder)) == 2 for folder in folders)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="root may write everywhere but there")
def test_an_unwritable_place_gives_one_clear_line() -> None:
    done = run(*FAST, "hydra.run.dir=/proc/selfdraft")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_sweep_writes_only_into_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").write_text("mine")
    done = run("-m", *FAST, "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.endswith("holds files that no run has written (multirun.yaml): choose another hydra.sweep.dir\n")
    assert [path.name for path in tmp_path.iterdir()] == ["multirun.yaml"]
    assert (tmp_path / "multirun.yaml").read_text() == "mine"
