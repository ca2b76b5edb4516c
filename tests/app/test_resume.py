"""A killed or interrupted run resumes where it stopped; a folder belongs to one run and one configuration."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from command_line import SMALLEST, SMOKE, read_lines, read_result, run_here, said_by, start, wait_until
from selfdraft.core.errors import UserError

# At measured costs, how much is drafted depends on the clock.
LONG = (*SMOKE, "drafter.costs=flat", "decoding.max_new_tokens=32")  # six prompts, seven turns, a second or two


def finished(folder: Path) -> int:
    path = folder / "prompts.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


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
        wait_until(running, lambda: finished(folder) >= 2)
        os.killpg(running.pid, signal.SIGSTOP)  # so that it does not end meanwhile
        with pytest.raises(UserError) as refused:
            run_here(folder, *LONG)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    return Killed(folder, (folder / "prompts.jsonl").read_bytes(), str(refused.value))


def test_a_killed_run_resumes_after_its_finished_prompts(killed: Killed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed.folder, folder)
    kept = killed.lines[: killed.lines.rindex(b"\n") + 1]
    assert 2 <= kept.count(b"\n") < 7
    said = " ".join(said_by(folder, *LONG).split())  # the console may have wrapped it
    assert f"resuming {folder}: " in said
    assert " of 6 prompts were finished before" in said
    assert (folder / "prompts.jsonl").read_bytes().startswith(kept)

    lines, result = read_lines(folder), read_result(folder)
    keys = [(line["id"], line["turn"]) for line in lines]
    assert len(set(keys)) == len(keys) == result["turns"]
    assert result["prompts"] == 6
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


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three turns."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run_here(folder, *SMALLEST)
    assert [(line["id"], line["turn"]) for line in read_lines(folder)][:2] == [("1", 0), ("1", 1)]
    return folder


@pytest.mark.parametrize("lost", ["half of the last line", "all but the first turn"])
def test_what_is_lost_of_the_lines_is_measured_again(short: Path, lost: str, tmp_path: Path) -> None:
    folder, before = Path(shutil.copytree(short, tmp_path / "run")), read_lines(short)
    whole = (folder / "prompts.jsonl").read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    first = whole.index(b"\n") + 1
    kept, half = (last, whole[last : (last + len(whole)) // 2]) if "half" in lost else (first, b"")
    (folder / "prompts.jsonl").write_bytes(whole[:kept] + half)
    (folder / "result.json").unlink()

    said = said_by(folder, *SMALLEST)
    assert "resuming" in said
    assert (folder / "prompts.jsonl").read_bytes()[:kept] == whole[:kept]
    # How much is drafted does not depend on when; a second turn goes on with the answer that was kept.
    for key in ("prompt_ids", "output_ids", "steps"):
        assert [line[key] for line in read_lines(folder)] == [line[key] for line in before]
    assert read_result(folder)["prompts"] == 2


def test_a_finished_run_started_again_decodes_nothing_and_may_have_another_logger(short: Path) -> None:
    before, result = (short / "prompts.jsonl").read_bytes(), read_result(short)
    said = " ".join(said_by(short, *SMALLEST, "logger=csv").split())
    assert "resuming" in said and "2 of 2 prompts were finished before" in said
    assert (short / "prompts.jsonl").read_bytes() == before
    assert read_result(short) == result


def test_a_run_from_before_an_option_was_added_goes_on(short: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["decoding"]["guard"], config["drafter"]["order"], config["hardware"]["tensor_parallel"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    before = (folder / "prompts.jsonl").read_bytes()
    run_here(folder, *SMALLEST)
    assert (folder / "prompts.jsonl").read_bytes() == before


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
    assert read_result(folder)["prompts"] == 6
