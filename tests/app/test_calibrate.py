"""task=calibrate: its artifact, resuming, several processes, and using the artifact in other runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from command_line import SMOKE, read_lines, read_result, run, run_here, said_by, start, wait_until
from selfdraft.app.terminal.command_line import with_artifact
from selfdraft.core.errors import UserError
from selfdraft.modules.search import Search

FAST = (*SMOKE, "task=calibrate", "drafter=layer_skip", "calibrate.prompts=2", "calibrate.tokens=8")
RANDOM = (*FAST, "calibrate.method=random", "calibrate.trials=6")


def artifact(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "drafter.yaml").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A calibration's folder and its printed output."""
    folder = tmp_path_factory.mktemp("calibrated")
    return folder, " ".join(said_by(folder, *RANDOM, "calibrate.check=2").split())


def test_the_artifact_has_the_best_candidate_and_lists_all(found: tuple[Path, str]) -> None:
    folder, said = found
    written, result = artifact(folder), read_result(folder)
    assert written["drafter"] == "layer_skip"
    assert [line["index"] for line in written["history"]] == list(range(6))
    best = max(written["history"], key=lambda line: line["value"])
    assert written["options"] == {
        key: best[key] for key in ("skip_attention", "skip_mlp", "draft_length", "min_confidence")
    }
    assert result["objective"] == best["value"] == written["objective"]["value"]
    assert len(result["checks"]) == 2
    for check in result["checks"]:
        assert check["error"] == pytest.approx(check["predicted_speedup"] / check["measured_speedup"] - 1)
    assert "of 2" in said
    assert f"drafter.from={folder}/drafter.yaml" in said


def test_drafter_from_equals_typing_the_artifact_s_options(found: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = found
    options = artifact(folder)["options"]
    small = ("dataset.limit=1", "decoding.max_new_tokens=4")
    arguments = with_artifact([*SMOKE, *small, f"drafter.from={folder}/drafter.yaml"])
    run_here(tmp_path, *arguments)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["drafter"]["path"]["name"] == "layer_skip"
    written = {**config["drafter"]["path"], **config["drafter"]}
    assert {key: written[key] for key in options} == options
    assert len(read_lines(tmp_path)) == 2


def test_options_after_drafter_from_override_the_artifact_and_a_folder_is_enough(
    found: tuple[Path, str], tmp_path: Path
) -> None:
    small = ("dataset.limit=1", "decoding.max_new_tokens=4", f"hydra.run.dir={tmp_path}/run")
    done = run(*SMOKE, *small, f"drafter.from={found[0]}", "drafter.draft_length=7")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["drafter"]["draft_length"] == 7


def test_an_artifact_of_another_model_gives_one_clear_line(found: tuple[Path, str], tmp_path: Path) -> None:
    arguments = with_artifact([*SMOKE, "model.seed=1", f"drafter.from={found[0]}"])
    with pytest.raises(UserError, match=r"was made for tiny llama \(\w{16}\), but this model is tiny llama"):
        run_here(tmp_path, *arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["drafter.from=nowhere.yaml"], "drafter.from=nowhere.yaml: No such file"),
        (["drafter=jacobi", "drafter.from={found}"], "is for drafter=layer_skip, not for drafter=jacobi"),
        (["drafter.from={other}"], "give the drafter.yaml that task=calibrate or"),
    ],
)
def test_an_unusable_artifact_gives_one_clear_line(
    arguments: list[str], reason: str, found: tuple[Path, str], tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("a: 1\n")
    with pytest.raises(UserError, match=reason):
        with_artifact([a.format(found=found[0], other=other) for a in arguments])


# Every method with one of the objectives, and one of them with both.
PAIRS = [
    ("importance", "matchness"),
    ("importance", "tokens_per_s"),
    ("bayes", "matchness"),
    ("evolution", "tokens_per_s"),
    ("dp", "matchness"),
]


@pytest.mark.parametrize(("method", "objective"), PAIRS)
def test_every_method_and_every_objective_works(method: str, objective: str, tmp_path: Path) -> None:
    options = ["calibrate.trials=7", "calibrate.check=0", f"calibrate.method={method}", "drafter.path.sparsity=0.5"]
    value = run_here(tmp_path, *FAST, *options, f"calibrate.objective={objective}")
    lines = artifact(tmp_path)["history"]
    assert value == max(line["value"] for line in lines)
    if objective == "matchness":
        assert all(line["value"] == line["matchness"] for line in lines)
        together = lines[4:] if method == "importance" else lines
        assert all(len(line["skip_attention"]) + len(line["skip_mlp"]) == 2 for line in together)


def test_a_killed_calibration_resumes_with_the_scored_candidates(tmp_path: Path) -> None:
    folder, long = tmp_path / "run", (*FAST, "calibrate.trials=8", "calibrate.check=0", "calibrate.method=random")

    def scored() -> int:
        journal = folder / "study.journal"
        return journal.read_text().count('"skip_mlp"') if journal.exists() else 0

    running = start(folder, *long)
    try:
        wait_until(running, lambda: scored() >= 3)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    before = Search(folder, "random", 4, (1, 2), 8, seed=0).history()
    texts, costs = ((folder / name).read_bytes() for name in ("texts.json", "costs.json"))
    assert 2 <= len(before) < 8  # of the third, perhaps only a part
    with pytest.raises(UserError, match=r"calibrate\.trials 8 there but 7 now"):
        run_here(folder, *long, "calibrate.trials=7")
    run_here(folder, *long)
    lines = artifact(folder)["history"]
    assert [line["index"] for line in lines] == list(range(8))
    assert [line for line in lines if line["index"] in {b["index"] for b in before}] == before
    assert texts == (folder / "texts.json").read_bytes()
    assert costs == (folder / "costs.json").read_bytes()


@pytest.mark.slow
def test_two_processes_share_the_candidates(tmp_path: Path) -> None:
    done = run(*RANDOM, "calibrate.check=1", "hardware=cpu_ddp", f"hydra.run.dir={tmp_path}/two")
    assert done.returncode == 0, done.stdout + done.stderr
    written = artifact(tmp_path / "two")
    assert [line["index"] for line in written["history"]] == list(range(6))
    assert done.stdout.count("written: ") == 1
    assert json.loads((tmp_path / "two" / "result.json").read_text())["trials"] == 6


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("drafter=jacobi", "task=calibrate cannot search for drafter=jacobi: use drafter=layer_skip"),
        ("drafter.siblings=true", "plain chains with a threshold: leave drafter.siblings as it is"),
        ("decoding=sample", "task=calibrate counts greedy agreement: use decoding=greedy"),
    ],
)
def test_invalid_calibrations_give_one_clear_line(override: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        run_here(tmp_path, *FAST, override)
