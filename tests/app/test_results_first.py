"""Results are written before optional work, whose failures are only warnings."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from command_line import SMOKE, read_lines, read_result, run_here, said_by, write_prompts
from few_positions import POSITIONS, small_model
from selfdraft.app.tasks import evaluate
from selfdraft.tracking.numbers.lines import LEFT_OUT

SHORT = (*SMOKE, "dataset.limit=2", "decoding.max_new_tokens=4", "drafter=none")


def warnings_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_a_failing_picture_is_only_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(evaluate, "plot_result", side_effect=ValueError("no font\nat all")):
        run_here(tmp_path, *SHORT)
    assert read_result(tmp_path)["prompts"] == 2
    assert warnings_of(capsys) == ["warning: result.png was not drawn: no font"]


def test_a_killed_wandb_service_is_only_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import wandb

    def kill_and_draw(*given: object) -> None:
        os.kill(wandb.setup()._connection._proc._process.pid, signal.SIGKILL)
        time.sleep(0.5)

    with patch.object(evaluate, "plot_result", kill_and_draw):
        run_here(tmp_path / "first", *SHORT, "logger=wandb")
    assert read_result(tmp_path / "first")["prompts"] == 2
    lost, incomplete = warnings_of(capsys)
    assert lost.startswith("warning: the result was not logged: ")
    assert incomplete.startswith("warning: the W&B run is not complete: ")
    run_here(tmp_path / "second", *SHORT, "logger=wandb")  # the same process goes on
    assert warnings_of(capsys) == []
    assert list((tmp_path / "second" / "wandb").glob("offline-run-*"))


def test_an_unwritable_home_folder_loses_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B keeps its media there, which shows only when the picture is logged."""
    (tmp_path / "file").write_text("")
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    run_here(tmp_path / "run", *SHORT, "logger=wandb")
    assert read_result(tmp_path / "run")["prompts"] == 2
    (warning,) = warnings_of(capsys)
    assert warning.startswith("warning: the result was not logged: ")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that choose a model of few positions."""
    return small_model(tmp_path_factory.mktemp("model") / "small")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_second_turn_that_is_too_long_is_left_out(tmp_path: Path, small: list[str], batch_size: int) -> None:
    prompts = write_prompts(
        tmp_path / "p.jsonl",
        {"id": "long", "category": "a", "turns": ["one", "two " * 30, "three"]},
        {"id": "short", "category": "b", "turns": ["one", "two"]},
    )
    ask = [*small, "dataset=jsonl", f"dataset.path='{prompts}'", "decoding.max_new_tokens=6", "drafter=none"]
    ask.append(f"decoding.batch_size={batch_size}")
    said = said_by(tmp_path / "run", *ask)
    lines = {(line["id"], line["turn"]): line for line in read_lines(tmp_path / "run")}
    assert sorted(lines) == [("long", 0), ("long", 1), ("long", 2), ("short", 0), ("short", 1)]
    assert [key for key in sorted(lines) if LEFT_OUT in lines[key]] == [("long", 1), ("long", 2)]
    assert f"this model has {POSITIONS} positions" in lines["long", 1][LEFT_OUT]
    assert lines["long", 2][LEFT_OUT] == "turn 2 was left out"
    result = read_result(tmp_path / "run")
    assert (result["prompts"], result["turns"], result["left_out"]) == (2, 3, 2)
    assert [family["left_out"] for family in result["by_category"].values()] == [2, 0]
    assert "left out: 2 turns that the model has no positions for" in said

    (tmp_path / "run" / "result.json").unlink()
    run_here(tmp_path / "run", *ask)  # resumed, it ends the same way
    again = read_result(tmp_path / "run")
    assert (again["turns"], again["left_out"]) == (3, 2)
    assert len(read_lines(tmp_path / "run")) == 5
