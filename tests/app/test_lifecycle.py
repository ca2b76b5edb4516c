"""Every task has the same lifecycle: memory refused first, folder locked and marked, logger, Ctrl-C, closing lines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from command_line import CONF, SMOKE, run_here, said_by
from selfdraft.app import run as running
from selfdraft.app.run import TASKS
from selfdraft.app.runs import lifecycle
from selfdraft.app.tasks import profile
from selfdraft.core.errors import UserError
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import load_tiny
from selfdraft.models.trained.adapter import Adapter
from selfdraft.tracking.files.artifact import Artifact
from selfdraft.tracking.files.run_folder import LOCK

SMALL = (*SMOKE, "dataset.limit=2", "decoding.max_new_tokens=4")
OWN: dict[str, tuple[str, ...]] = {
    "evaluate": ("drafter=none",),
    "compare": ("task.contenders=[none,suffix]",),
    "advise": ("task.candidates=[suffix]", "task.tried=1", "task.prompts=1"),
    "doctor": (),
    "generate": ("prompt=Hello", "drafter=none"),
    "trace": ("prompt=Hello", "drafter=none"),
    "profile": ("task.rounds=1", "task.grid=false"),
    "calibrate": ("drafter=layer_skip", "calibrate.trials=2", "calibrate.prompts=1", "calibrate.check=1"),
    "distill_data": ("drafter=none",),
    "finetune": (
        "finetune.steps=2",
        "finetune.validate_every=1",
        "finetune.length=64",
        "finetune.longest_prompt=32",
        "finetune.batch_size=1",
    ),
    "export": ("drafter=layer_skip",),
    "audit": (),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts to learn from, and of trained weights to export."""
    folder = tmp_path_factory.mktemp("texts")
    more = ("dataset.limit=4", "decoding.max_new_tokens=16", "drafter=none", "decoding.batch_size=4")
    run_here(folder, *SMALL, "task=distill_data", *more)
    model = load_tiny("llama", 0, "float32", torch.device("cpu")).model
    Adapter("sparse_distill", {"skip_mlp": [1]}, {"norm.weight": torch.ones(32)}).write(folder)
    label = {"label": "tiny llama", "dtype": "float32", "fingerprint": fingerprint(model)}
    Artifact("layer_skip", {"adapter": "."}, label, {}, []).write(folder / "drafter.yaml")
    return folder


def arguments(task: str, texts: Path, *more: str) -> tuple[str, ...]:
    data = {
        "finetune": (f"finetune.data=[{texts}]",),
        "export": (f"artifact='{texts}'",),
        "audit": (f"audit.file='{texts}/texts.jsonl'",),
    }
    return (*SMALL, f"task={task}", *OWN[task], *data.get(task, ()), *more)


def test_every_task_is_tried() -> None:
    assert OWN.keys() == TASKS.keys() - {"report"}  # it needs finished runs: see test_reporting.py


@pytest.mark.parametrize("task", OWN)
def test_a_run_writes_mark_environment_log_and_a_closing_line(task: str, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = said_by(folder, *arguments(task, texts, "logger=csv"))
    assert json.loads((folder / "selfdraft.json").read_text())["task"] == task
    assert json.loads((folder / "environment.json").read_text())["cpu"]["threads"] >= 1
    assert (folder / "config.yaml").exists()
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        assert any(any(row.values()) for row in csv.DictReader(file))
    assert said.strip().splitlines()[-1] == f"results: {folder}"
    FileLock(folder / LOCK, timeout=0).acquire().lock.release()  # nobody holds it any more


@pytest.mark.parametrize("task", [task for task in OWN if task != "doctor"])  # which says what fits
def test_a_run_that_does_not_fit_in_memory_is_refused_before_loading(
    task: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdraft.models.measuring.memory.available", lambda device: 1000)
    monkeypatch.setattr("selfdraft.app.options.schema_model.TinyModelConfig.load", None)
    with pytest.raises(UserError, match=r"^memory: this run needs about"):
        run_here(tmp_path / "run", *arguments(task, texts, "logger=none"))
    assert not (tmp_path / "run" / "selfdraft.json").exists()


@pytest.mark.parametrize("task", OWN)
def test_a_folder_in_use_is_refused(task: str, texts: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match="is in use by another run"):
        run_here(tmp_path, *arguments(task, texts, "logger=none"))


@pytest.mark.parametrize(("task", "begun"), [("evaluate", False), *((task, True) for task in OWN)])
def test_an_interruption_closes_the_logger_and_prints_what_is_kept(
    task: str, begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = []
    monkeypatch.setattr(lifecycle, "close_logger", lambda logger, failed, reason: closed.append(failed))

    def work(run: lifecycle.Run) -> None:
        if begun:
            run.begin()
        raise KeyboardInterrupt

    monkeypatch.setitem(running.TASKS, task, running.Task(work, TASKS[task].kept))
    with pytest.raises(SystemExit) as stopped:
        run_here(tmp_path / "run", *SMALL, f"task={task}", "logger=none")
    assert stopped.value.code == 130 and closed == [True]
    said = " ".join(capsys.readouterr().out.split())
    goes_on = f"{TASKS[task].kept}: the same command with hydra.run.dir={tmp_path / 'run'} goes on"
    assert said.endswith(f"stopped; {goes_on if begun and TASKS[task].kept else 'nothing is kept'}")


def test_a_profile_uses_the_requested_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    right = profile.Target

    def noting(model: object, **options: object):
        asked.append(options["attention"])
        return right(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(profile, "Target", noting)
    run_here(tmp_path / "run", *SMALL, "task=profile", *OWN["profile"], "model.attention=eager", "logger=none")
    assert asked == ["eager"]


def test_the_configuration_names_every_task() -> None:
    assert {path.stem for path in (CONF / "task").glob("*.yaml")} == set(TASKS)  # test_config composes each


@pytest.mark.parametrize(("task", "kept"), [("generate", "result.json"), ("trace", "trace.json")])
def test_an_answer_to_another_prompt_does_not_overwrite_the_first(task: str, kept: str, tmp_path: Path) -> None:
    run_here(tmp_path, *SMALL, f"task={task}", "prompt=Hello", "logger=none", "drafter=none")
    before = (tmp_path / kept).read_bytes()
    with pytest.raises(UserError, match="prompt"):
        run_here(tmp_path, *SMALL, f"task={task}", "prompt=Another", "logger=none", "drafter=none")
    assert (tmp_path / kept).read_bytes() == before
