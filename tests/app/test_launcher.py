"""Sweeps by `ProcessLauncher`, on a small Hydra application with trivial jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from command_line import environment
from forked import Forked, run_forked
from selfdraft.app.sweeps.jobs import Place, places
from selfdraft.app.sweeps.sweep_index import folder_name

APP = """
import json, os, sys, time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg):
    hydra_cfg = HydraConfig.get()
    here = Path(hydra_cfg.runtime.output_dir)
    said = {
        "pid": os.getpid(), "number": hydra_cfg.job.num, "mode": hydra_cfg.mode.name, "argv": sys.argv[1:],
        "at": time.time(), "cores": sorted(os.sched_getaffinity(0)),
        "layers": OmegaConf.to_container(cfg.layers), "text": cfg.text,
    }
    (here / "said.json").write_text(json.dumps(said))
    time.sleep(cfg.sleep)
    if cfg.a == cfg.fail_at:
        sys.exit(3) if cfg.text == "plain" else sys.exit(cfg.text)
    speedup = cfg.a + cfg.b / 10
    result = {
        "objective": speedup,
        "speedup_total_interval": {"median": speedup, "low": speedup - 0.1, "high": speedup + 0.1},
        "tokens_per_forward": 1.5, "decode_tokens_per_s": 30.0, "baseline_tokens_per_s": 20.0,
        "lossless": {"exact": 3, "tie": 1, "mismatch": 0},
    }
    (here / "result.json").write_text(json.dumps(result))
    if cfg.a == cfg.mismatch_at:
        sys.exit(4)


if __name__ == "__main__":
    main()
"""

CONFIG = """
defaults:
  - override hydra/launcher: process
  - _self_
a: 0
b: 0
sleep: 0
fail_at: -1
mismatch_at: -1
layers: [1]
text: plain
hydra:
  sweep: {dir: sweeps/default, subdir: "${hydra.job.num}"}
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "an app, with spaces"  # a comma and spaces, as they do occur in paths
    (folder / "conf").mkdir(parents=True)
    (folder / "run.py").write_text(APP)
    (folder / "conf" / "config.yaml").write_text(CONFIG)
    return folder


def sweep(app: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A sweep whose processes are forked."""
    return run_forked(app / "run.py", ["-m", *overrides], cwd=app, env=environment(), timeout=120)


def said(job: Path) -> dict:
    return json.loads((job / "said.json").read_text())


def sorted_by_job(folder: Path) -> list[str]:
    return pd.read_csv(folder / "sweep.csv").sort_values("job")["job_dir"].tolist()


def test_every_job_is_its_own_process_and_the_table_has_the_best_first(app: Path) -> None:
    done = sweep(app, "a=1,2", "b=3,4")
    assert done.returncode == 0, done.stderr
    jobs = [app / "sweeps/default" / f"a={a},b={b}" for a in (1, 2) for b in (3, 4)]
    heard = [said(job) for job in jobs]
    assert len({one["pid"] for one in heard}) == 4
    assert [one["number"] for one in heard] == [0, 1, 2, 3]
    assert {one["mode"] for one in heard} == {"RUN"}

    table = pd.read_csv(app / "sweeps/default/sweep.csv")
    assert table["speedup"].tolist() == [2.4, 2.3, 1.4, 1.3]
    assert table["a"].tolist() == [2, 2, 1, 1] and table["b"].tolist() == [4, 3, 4, 3]
    assert table["job_dir"].tolist() == [str(jobs[n]) for n in (3, 2, 1, 0)]
    best = table.iloc[0]
    assert (best["status"], best["exact"], best["tie"], best["mismatch"]) == ("completed", 3, 1, 0)
    assert (best["speedup_low"], best["speedup_high"]) == (2.3, 2.5)
    assert (best["tokens_per_forward"], best["decode_tokens_per_s"], best["baseline_tokens_per_s"]) == (1.5, 30, 20)
    assert done.stdout.index("2.40 [2.30, 2.50]") < done.stdout.index("1.30 [1.20, 1.40]")


def test_a_failed_job_is_reported_and_the_others_run(app: Path) -> None:
    done = sweep(app, "a=1,2,3", "fail_at=2", "mismatch_at=3", "hydra.sweep.dir=out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    failed = "2 of 3 jobs failed: 1 (exit 3), 2 (exit 4)"
    assert failed in done.stderr.splitlines()

    table = pd.read_csv(app / "out/sweep.csv").set_index("a")
    assert table["status"].to_dict() == {1: "completed", 2: "failed (exit 3)", 3: "failed (exit 4)"}
    assert table.index[0] == 1  # a higher speedup of a run that failed is no better
    assert pd.isna(table.loc[2, "speedup"])
    assert table.loc[3, "speedup"] == 3.0  # what it measured before it failed is kept


def test_a_failed_job_does_not_get_the_result_of_an_earlier_sweep(app: Path) -> None:
    assert sweep(app, "a=1").returncode == 0
    assert sweep(app, "a=1", "fail_at=1", "hydra.sweep.subdir=here").returncode == 1
    assert sweep(app, "a=1", "hydra.sweep.subdir=here").returncode == 0
    assert sweep(app, "a=1", "fail_at=1", "hydra.sweep.subdir=here").returncode == 1
    assert pd.isna(pd.read_csv(app / "sweeps/default/sweep.csv").loc[0, "speedup"])


def test_keep_going_can_be_turned_off(app: Path) -> None:
    assert sweep(app, "a=1,2,3", "fail_at=2", "hydra.launcher.keep_going=false").returncode == 1
    table = pd.read_csv(app / "sweeps/default/sweep.csv").set_index("a")
    assert table.loc[3, "status"] == "pending" and table.loc[1, "status"] == "completed"
    assert not (app / "sweeps/default/a=3").exists()


def test_values_with_commas_quotes_and_lists_survive(app: Path) -> None:
    done = sweep(app, "layers=[1,2],[3,'a, b']", r"text='one = \'two\', ${a}'", "+new.key={k: [1]}")
    assert done.returncode == 0, done.stderr
    first, second = (said(Path(folder)) for folder in sorted_by_job(app / "sweeps/default"))
    assert (first["layers"], second["layers"]) == ([1, 2], [3, "a, b"])
    assert first["text"] == "one = 'two', 0"


def test_jobs_get_all_settings_except_those_of_the_sweep(app: Path) -> None:
    (app / "conf" / "other.yaml").write_text(CONFIG + "  mode: MULTIRUN\n  sweeper: {params: {b: '5,6'}}\n")
    overrides = [
        "hydra.sweep.dir='here, there'",
        "hydra.sweep.subdir=n${hydra.job.num}",
        "hydra.launcher.keep_going=true",
        "hydra.job.name=mine",
        "a=1",
    ]
    given = ["--config-name", "other", *overrides]
    done = run_forked(Path("run.py"), given, cwd=app, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    argv = said(app / "here, there" / "n1")["argv"]
    assert argv[0] == "--config-name=other" and "b=6" in argv
    assert [a for a in argv if a.startswith("hydra.")] == [
        "hydra.job.name=mine",
        "hydra.mode=RUN",
        "hydra.job.num=1",
        "hydra.job.id=1",
        'hydra.run.dir="' + str(app / "here, there" / "n1") + '"',
    ]


def test_batches_of_a_sweep_share_one_table(app: Path) -> None:
    assert sweep(app, "a=1,2,3", "hydra.sweeper.max_batch_size=1").returncode == 0
    assert pd.read_csv(app / "sweeps/default/sweep.csv")["a"].tolist() == [3, 2, 1]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_ends_its_job_and_keeps_finished_results(app: Path, stop: signal.Signals) -> None:
    given = ("-m", "sleep=0,60,61")
    if stop == signal.SIGINT:  # one of them in real processes
        command = [sys.executable, str(app / "run.py"), *given]
        running = subprocess.Popen(command, cwd=app, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    else:
        running = Forked(app / "run.py", given, cwd=app, env=environment())
    second = app / "sweeps/default/sleep=60/said.json"
    while not (second.exists() and second.read_text()) and running.poll() is None:
        time.sleep(0.1)
    os.kill(running.pid, stop)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Stopped during job 1" in out + err
    with pytest.raises(ProcessLookupError):
        os.kill(said(second.parent)["pid"], 0)
    table = pd.read_csv(app / "sweeps/default/sweep.csv").set_index("sleep")
    assert table["status"].to_dict() == {0: "completed", 60: "interrupted", 61: "pending"}


def test_a_sweep_again_starts_no_finished_job_and_can_be_enlarged(app: Path) -> None:
    assert sweep(app, "a=1,2", "fail_at=2").returncode == 1
    first = said(app / "sweeps/default/a=1")["pid"]
    done = sweep(app, "a=1,2,3", "b=0,1", "fail_at=2")
    assert done.returncode == 1 and "1 of 6 jobs had finished before: a=1" in done.stdout
    assert said(app / "sweeps/default/a=1")["pid"] == first
    table = pd.read_csv(app / "sweeps/default/sweep.csv").sort_values("job").reset_index(drop=True)
    assert (table["status"] == "completed").tolist() == [True, True, False, False, True, True]
    assert table.loc[0, "speedup"] == 1.0, "what the finished job measured is in the new table"
    before = table.drop(columns=["seconds"])
    again = sweep(app, "a=1,2,3", "b=0,1", "fail_at=2")
    assert "4 of 6 jobs had finished before" in again.stdout
    after = pd.read_csv(app / "sweeps/default/sweep.csv").sort_values("job").reset_index(drop=True)
    pd.testing.assert_frame_equal(before, after.drop(columns=["seconds"]))


def test_the_table_has_the_reason_of_a_failure(app: Path) -> None:
    done = sweep(app, "a=1,2", "fail_at=2", "text='selfdraft: no such layer'")
    table = pd.read_csv(app / "sweeps/default/sweep.csv").set_index("a")
    assert (table.loc[2, "status"], table.loc[2, "reason"]) == ("failed (exit 1)", "no such layer")
    assert "failed (exit 1): no such layer" in " ".join(done.stdout.split())


def test_jobs_run_at_once_each_with_its_own_cores(app: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("there is one core")
    began = time.monotonic()
    done = sweep(app, "a=1,2", "sleep=3", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    heard = [said(app / "sweeps/default" / f"a={a}") for a in (1, 2)]
    assert abs(heard[0]["at"] - heard[1]["at"]) < 2.5, f"one after the other, in {time.monotonic() - began:.1f} s"
    assert not set(heard[0]["cores"]) & set(heard[1]["cores"])
    assert sorted(heard[0]["cores"] + heard[1]["cores"]) == cores


def test_a_killed_sweep_takes_its_job_with_it_and_goes_on(app: Path) -> None:
    running = Forked(app / "run.py", ("-m", "a=1,2,3", "b=0"), cwd=app, env=environment())
    first = app / "sweeps/default/a=1/result.json"
    while not first.exists() and running.poll() is None:
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    done = sweep(app, "a=1,2,3", "b=0")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(app / "sweeps/default/sweep.csv")
    assert table["a"].tolist() == [3, 2, 1] and (table["status"] == "completed").all()
    assert len(list((app / "sweeps/default").glob("*/result.json"))) == 3


def test_names_of_folders_are_short_unique_and_safe() -> None:
    varying = {"drafter.window", "drafter.path.sparsity", "drafter", "x.window"}
    given = ["drafter=jacobi", "drafter.window=4", "seed=1"]
    assert folder_name(given, varying) == "drafter=jacobi,window=4"
    assert folder_name(["drafter.window=4", "x.window=5"], varying) == "drafter.window=4,x.window=5"
    odd = {folder_name([f"prompt={text}"], {"prompt"}) for text in ("a/b", "a b", "../x", "y" * 300, "y" * 301)}
    assert len(odd) == 5
    assert all("/" not in name and not name.startswith(".") and len(name) < 200 for name in odd)


def test_places_share_out_cores_and_gpus() -> None:
    cores = sorted(os.sched_getaffinity(0))
    found = places(4, ["0", "1"])
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in found] == ["0", "1", "0", "1"]
    assert all(place.cores and set(place.cores) <= set(cores) for place in found)
    assert [place.environment for place in places(2, ["4", "5", "6"])] == [
        {"CUDA_VISIBLE_DEVICES": "4,6"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert places(1, []) == [Place()]
