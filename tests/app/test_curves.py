"""Curves in the logger while tasks other than evaluations work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import SMOKE, read_result, run_here
from selfdraft.modules.calibrate import CalibrateModule

pytestmark = pytest.mark.slow

WANDB = Path(sys.executable).with_name("wandb")
SHORT = (*SMOKE, "logger=wandb", "logger.mode=offline", "decoding.max_new_tokens=8")
CALIBRATE = ("task=calibrate", "drafter=layer_skip", "calibrate.prompts=2", "calibrate.tokens=8",
             "calibrate.method=random", "calibrate.trials=4", "calibrate.check=1")  # fmt: skip
ASK = ("prompt='again and again and again'", "drafter=pool", "drafter.costs=flat")


def history(folder: Path) -> list[dict[str, Any]]:
    """The records that an offline run has kept, in order."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    done = subprocess.run([WANDB, "leet", "inspect", "--json", run], capture_output=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def axes(folder: Path) -> dict[str, str]:
    """By number, the axis that it is plotted over by its own name: `wandb leet` knows no patterns."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    done = subprocess.run([WANDB, "leet", "inspect", "--json", run], capture_output=True, check=True)
    metrics = [record["metric"] for record in map(json.loads, done.stdout.splitlines()) if record["type"] == "metric"]
    return {metric["name"]: metric.get("step_metric", "") for metric in metrics if "name" in metric}


def along(folder: Path, axis: str) -> list[dict[str, Any]]:
    return [item for item in history(folder) if axis in item]


def test_candidates_of_a_calibration_come_with_the_best_so_far(tmp_path: Path) -> None:
    run_here(tmp_path, *SHORT, *CALIBRATE)
    points = along(tmp_path, "candidate")
    assert [point["candidate"] for point in points] == [0, 1, 2, 3]
    values = [point["candidate/value"] for point in points]
    named = axes(tmp_path)
    assert named["candidate/value"] == named["best/value"] == "candidate"
    assert [point["best/value"] for point in points] == [max(values[: i + 1]) for i in range(4)]
    assert all({"candidate/matchness", "candidate/predicted_speedup"} < set(point) for point in points)
    checked = along(tmp_path, "checked")
    assert [point["checked"] for point in checked] == [1, 2]
    assert checked[-1]["check/speedup/1"] == pytest.approx(read_result(tmp_path)["measured_speedup"])


def test_what_a_failed_calibration_had_scored_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, calls = CalibrateModule.score, []

    def fails_at_the_third(self: CalibrateModule, skip: Any) -> Any:
        calls.append(skip)
        if len(calls) == 3:
            raise RuntimeError("the third one")
        return score(self, skip)

    monkeypatch.setattr(CalibrateModule, "score", fails_at_the_third)
    with pytest.raises(RuntimeError, match="the third one"):
        run_here(tmp_path, *SHORT, *CALIBRATE)
    assert len(along(tmp_path, "candidate")) == 2
    assert json.loads((tmp_path / "status.json").read_text())["reason"] == "RuntimeError: the third one"


def test_texts_of_a_dataset_come_one_by_one(tmp_path: Path) -> None:
    run_here(tmp_path, *SHORT, "task=distill_data", "drafter=prompt_lookup", "decoding.batch_size=2")
    points, result = along(tmp_path, "text"), read_result(tmp_path)
    assert [point["text"] for point in points] == [*range(1, result["texts"] + 1)]
    assert sum(point["text/tokens"] for point in points) == points[-1]["running/tokens"] == result["tokens"]
    assert points[-1]["running/tokens_per_s"] == pytest.approx(result["tokens_per_s"])
    assert points[-1]["running/tokens_per_forward"] == pytest.approx(result["tokens_per_forward"])


@pytest.mark.parametrize("task", ["trace", "generate"])
def test_steps_of_an_answer_come_one_by_one(task: str, tmp_path: Path) -> None:
    run_here(tmp_path, *SHORT, f"task={task}", *ASK)
    points = along(tmp_path, "step")
    result = json.loads((tmp_path / ("trace.json" if task == "trace" else "result.json")).read_text())
    assert len(points) == result["target_forwards"]
    assert sum(point["step/tokens"] for point in points) == result["new_tokens"] == 8
    assert all(point["step/accepted"] <= point["step/drafted"] and point["step/seconds"] > 0 for point in points)
    assert points[-1]["running/tokens_per_forward"] == pytest.approx(8 / len(points))


def test_a_profile_s_forwards_and_steps_are_curves_over_their_tokens(tmp_path: Path) -> None:
    more = ("task=profile", "task.rounds=1", "drafter=early_exit", "drafter.path.exit_layer=2")
    run_here(tmp_path, *SHORT, *more)
    plain = json.loads((tmp_path / "profile.json").read_text())
    points = along(tmp_path, "forward_tokens")
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        for name, value in point.items():
            if "_s/" in name:
                curves.setdefault(name, []).append((point["forward_tokens"], value))
    assert curves["forward_s/forward"] == [*zip(plain["forward"]["sizes"], plain["forward"]["seconds"], strict=True)]
    assert {"forward_s/attention", "forward_s/rows_8", "forward_s/context_128", "forward_s/early_exit"} < set(curves)
    assert [tokens for tokens, _ in curves["step_s/eager/head"]] == [1, 8, 32]


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_other_loggers_get_the_same_curves(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(kind)
    run_here(tmp_path, *SHORT, *CALIBRATE, f"logger={kind}")
    if kind == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        (experiment,) = client.search_experiments(filter_string="name = 'selfdraft'")
        (found,) = client.search_runs([experiment.experiment_id])
        steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "candidate/value")]
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        steps = [e.step for e in EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("candidate/value")]
    assert sorted(steps) == [0, 1, 2, 3]
