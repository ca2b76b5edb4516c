"""Jobs of a sweep that cannot become the best are ended."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_launcher import APP, CONFIG, said, sweep

from selfdraft.app.sweeps.pruning import Pruner

# Every job writes three prompts whose speedup is `a`; only the best one ends by itself.
SLOW = """
    lines = [
        {"id": str(n), "turn": 0, "new_tokens": 10, "decode_s": 1.0 / cfg.a, "baseline_new_tokens": 10,
         "baseline_decode_s": 1.0}
        for n in range(3)
    ]
    (here / "prompts.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    time.sleep(0 if cfg.a == 9 else 600)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "run.py").write_text(APP.replace("    time.sleep(cfg.sleep)\n", SLOW))
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_a_hopeless_job_is_ended_and_not_started_again(app: Path) -> None:
    done = sweep(app, "a=9,1", "hydra.launcher.prune_after=3")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(app / "sweeps/default/sweep.csv").set_index("a")
    assert table["status"].to_dict() == {9: "completed", 1: "pruned"}
    assert table.loc[1, "reason"] == "speedup at most 1.00 after 3 prompts, and the best job has at least 8.90"
    first = said(app / "sweeps/default/a=1")["pid"]
    again = sweep(app, "a=9,1", "hydra.launcher.prune_after=3")
    assert "2 of 2 jobs had finished before" in again.stdout
    assert said(app / "sweeps/default/a=1")["pid"] == first
    assert pd.read_csv(app / "sweeps/default/sweep.csv").set_index("a").loc[1, "status"] == "pruned"


def test_optuna_is_told_and_the_best_of_an_earlier_sweep_counts(app: Path) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweep.dir=here", "hydra.sweeper.sampler=random", "b=0,1,2,3,4")
    assert sweep(app, *search, "a=9", "hydra.sweeper.n_trials=1").returncode == 0
    done = sweep(app, *search, "a=1", "hydra.sweeper.n_trials=2", "hydra.launcher.prune_after=3")
    assert done.returncode == 0, done.stderr
    storage = JournalStorage(JournalFileBackend(str(app / "here" / "optuna.journal")))
    trials = optuna.load_study(study_name="sweep", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED"]
    mixed = sweep(app, *search, "a=1", "hydra.sweeper.objectives=[-objective]", "hydra.launcher.prune_after=3")
    assert mixed.returncode == 1 and "hydra.launcher.prune_after ends jobs by their speedup" in mixed.stderr


def test_few_prompts_and_other_tasks_end_no_job(tmp_path: Path) -> None:
    pruner = Pruner(after=3, best=2.0)
    line = {"turn": 0, "new_tokens": 10, "decode_s": 1.0, "baseline_new_tokens": 10, "baseline_decode_s": 1.0}
    records = tmp_path / "prompts.jsonl"

    def written(*lines: dict) -> str:
        records.write_text("".join(json.dumps(each) + "\n" for each in lines))
        return pruner.verdict(tmp_path)

    assert pruner.verdict(tmp_path) == "", "nothing is written yet"
    assert written({**line, "id": "a"}, {**line, "id": "b"}) == ""
    assert written(*({**line, "id": name, "contenders": {}} for name in "abcde")) == ""
    assert "after 3 prompts" in written(*({**line, "id": name} for name in "abc"))
    assert Pruner(after=0, best=2.0).verdict(tmp_path) == Pruner(after=3).verdict(tmp_path) == ""
    pruner.finished({"speedup_total_interval": {"low": 0.5}})
    assert pruner.best == 2.0
