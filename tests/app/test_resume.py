"""A killed or interrupted run resumes where it stopped; a folder belongs to one run and one configuration."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import SMOKE, command, environment, read_lines, read_result, run_here, said_by
from selfdraft.core.errors import UserError

# At measured costs, how much is drafted depends on the clock.
LONG = (
    *SMOKE,
    "drafter.costs=flat",
    "dataset.per_category=4",
    "decoding.max_new_tokens=64",
)  # 24 prompts, some seconds
SHORT = (*SMOKE, "drafter.costs=flat", "dataset.limit=3", "decoding.max_new_tokens=4")


def finished(folder: Path) -> int:
    path = folder / "prompts.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A run in a session of its own, as a terminal would start it: a signal to its group reaches all of it."""
    return subprocess.Popen(
        command(*overrides, f"hydra.run.dir={folder}"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(running: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert running.poll() is None, f"it ended too early: {running.communicate()}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Killed:
    """The folder after kill -9, and the error of a second run while the first was running."""

    folder: Path
    lines: bytes
    refusal: str


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed") / "run"
    running = start(folder, *LONG)
    try:
        wait_until(running, lambda: finished(folder) >= 1)
        with pytest.raises(UserError) as refused:
            run_here(folder, *LONG)
        wait_until(running, lambda: finished(folder) >= 4)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    return Killed(folder, (folder / "prompts.jsonl").read_bytes(), str(refused.value))


def test_a_killed_run_resumes_after_its_finished_prompts(killed: Killed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed.folder, folder)
    kept = killed.lines[: killed.lines.rindex(b"\n") + 1]
    assert 4 <= kept.count(b"\n") < 24
    said = " ".join(said_by(folder, *LONG).split())  # the console may have wrapped it
    assert f"resuming {folder}: " in said
    assert " of 24 prompts were finished before" in said
    assert (folder / "prompts.jsonl").read_bytes().startswith(kept)

    lines, result = read_lines(folder), read_result(folder)
    keys = [(line["id"], line["turn"]) for line in lines]
    assert len(set(keys)) == len(keys) == result["turns"]
    assert result["prompts"] == 24
    assert result["new_tokens"] == sum(line["new_tokens"] for line in lines)


def test_a_folder_in_use_is_refused(killed: Killed) -> None:
    assert killed.refusal == (
        f"{killed.folder} is in use by another run: choose another hydra.run.dir, or wait for that one to end; if you "
        f"know that none is at work there, remove {killed.folder}/.lock and repeat the command"
    )


def test_another_config_is_refused_and_the_folder_not_changed(killed: Killed) -> None:
    before = {path.name: path.read_bytes() for path in killed.folder.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"drafter\.window 8 there but 4 now.*choose another hydra\.run\.dir"):
        run_here(killed.folder, *LONG, "drafter.window=4")
    assert {path.name: path.read_bytes() for path in killed.folder.iterdir() if path.is_file()} == before


def test_an_incomplete_last_line_is_dropped_and_measured_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_here(folder, *SHORT)
    before = read_lines(folder)
    whole = (folder / "prompts.jsonl").read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    (folder / "prompts.jsonl").write_bytes(whole[: (last + len(whole)) // 2])
    (folder / "result.json").unlink()

    said = said_by(folder, *SHORT)
    assert "resuming" in said
    after = (folder / "prompts.jsonl").read_bytes()
    assert after[:last] == whole[:last]
    lines = read_lines(folder)
    assert [line["output_ids"] for line in lines] == [line["output_ids"] for line in before]
    assert [line["steps"] for line in lines] == [line["steps"] for line in before]  # its draft does not depend on when
    assert read_result(folder)["prompts"] == 3


def test_only_the_second_turn_is_resumed_from_the_first_answer(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_here(folder, *SHORT)
    before = read_lines(folder)
    assert [(line["id"], line["turn"]) for line in before[:2]] == [("1", 0), ("1", 1)]
    first = (folder / "prompts.jsonl").read_bytes().split(b"\n")[0] + b"\n"
    (folder / "prompts.jsonl").write_bytes(first)
    run_here(folder, *SHORT)
    assert [line["prompt_ids"] for line in read_lines(folder)] == [line["prompt_ids"] for line in before]


def test_a_finished_run_started_again_decodes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_here(folder, *SHORT)
    before, result = (folder / "prompts.jsonl").read_bytes(), read_result(folder)
    said = " ".join(said_by(folder, *SHORT).split())
    assert "3 of 3 prompts were finished before" in said
    assert (folder / "prompts.jsonl").read_bytes() == before
    assert read_result(folder) == result


def test_the_logger_may_change_on_resuming(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_here(folder, *SHORT)
    assert "resuming" in said_by(folder, *SHORT, "logger=csv")


def test_ctrl_c_ends_with_130_a_hint_and_a_resumable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = start(folder, *LONG, "logger=wandb")
    wait_until(running, lambda: finished(folder) >= 2)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    hint = f"stopped; finished prompts are kept: the same command with hydra.run.dir={folder} goes on"
    assert hint in " ".join(out.split())
    assert "Traceback" not in out + err
    assert not (folder / "result.json").exists()
    kept = (folder / "prompts.jsonl").read_bytes()
    said = said_by(folder, *LONG)
    assert "resuming" in said
    assert (folder / "prompts.jsonl").read_bytes().startswith(kept)
    assert read_result(folder)["prompts"] == 24
