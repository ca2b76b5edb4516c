"""Sweeps by Optuna, on the small application of test_launcher.py, whose objective is a + b / 10."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_launcher import APP, CONFIG

from command_line import environment
from forked import Forked, run_forked

GIVEN = ("-m", "hydra/sweeper=optuna", "hydra.sweep.dir=here")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "run.py").write_text(APP)
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    return tmp_path


def sweep(app: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run_forked(app / "run.py", [*GIVEN, *overrides], cwd=app, env=environment(), timeout=200)


def study_in(app: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(app / "here" / "optuna.journal")))
    return optuna.load_study(study_name="sweep", storage=storage)


def test_it_finds_the_best_and_goes_on_where_it_stopped(app: Path) -> None:
    search = ("a=range(0,9)", "b=interval(0.0,1.0)", "text=plain")
    done = sweep(app, *search, "hydra.sweeper.n_trials=12")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(app / "here" / "sweep.csv")
    assert len(table) == 12 and (table["status"] == "completed").all()
    assert table["a"].between(0, 8).all() and table["b"].between(0, 1).all()
    study = study_in(app)
    assert study.best_value == pytest.approx(table["objective"].max())
    assert f"best: objective {study.best_value:.4g} with" in done.stdout
    assert done.stdout.count("Sweep of") == 1
    assert sweep(app, *search, "hydra.sweeper.n_trials=14").returncode == 0
    assert len(study_in(app).trials) == 14


def test_two_objectives_give_a_front(app: Path) -> None:
    goals = "hydra.sweeper.objectives=[objective,-speedup_total_interval/low]"
    done = sweep(app, "a=1,2,3", "hydra.sweeper.sampler=nsga2", goals, "hydra.sweeper.n_trials=4")
    assert done.returncode == 0, done.stderr
    assert len(study_in(app).best_trials[0].values) == 2
    other = sweep(app, "a=1,2,3", "hydra.sweeper.n_trials=5")
    assert other.returncode == 1 and "has other objectives: use another hydra.sweep.dir" in other.stderr


def test_failed_trials_count_and_are_rows(app: Path) -> None:
    done = sweep(app, "a=1,2", "fail_at=2", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=6")
    assert done.returncode == 0, done.stderr
    states = [trial.state.name for trial in study_in(app).trials]
    assert len(states) == 6 and set(states) == {"COMPLETE", "FAIL"}
    none = sweep(app, "a=2", "b=1,2", "fail_at=2", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=other")
    assert "none of 1 trials has completed" in none.stderr


def test_a_killed_sweep_tries_its_running_trial_again(app: Path) -> None:
    running = Forked(app / "run.py", (*GIVEN, "a=1,2,3", "sleep=600"), cwd=app, env=environment())
    while not list((app / "here").glob("*/said.json")) and running.poll() is None:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    first = study_in(app).trials[0].params
    assert sweep(app, "a=1,2,3", "sleep=0", "hydra.sweeper.n_trials=2").returncode == 0
    trials = study_in(app).trials
    assert trials[0].state.name == "FAIL" and trials[1].params == first
    assert [trial.state.name for trial in trials[1:]] == ["COMPLETE"] * 2


def test_nothing_to_search_is_a_mistake(app: Path) -> None:
    done = sweep(app, "a=1")
    assert done.returncode == 1 and "needs something to search" in done.stderr
