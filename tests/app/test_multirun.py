"""A sweep of the real program: one folder and process per job, and one table."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from command_line import ROOT, SMOKE, environment, read_result, run, wait_until
from forked import Forked

pytestmark = pytest.mark.slow


def test_a_sweep_gives_a_result_each_and_one_sorted_table(tmp_path: Path) -> None:
    """Of two jobs; tests/app/test_launcher.py has sweeps of more options, with trivial jobs."""
    short = ["dataset.limit=1", "decoding.max_new_tokens=4", "logger=csv"]
    done = run("-m", *SMOKE, *short, "drafter.window=4,8", f"hydra.sweep.dir={tmp_path}/sweep", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr

    folders = [tmp_path / "sweep" / f"window={window}" for window in (4, 8)]
    results = [read_result(folder) for folder in folders]
    assert all(result["prompts"] == 1 and result["lossless"]["mismatch"] == 0 for result in results)
    assert all((folder / "csv" / "metrics.csv").exists() for folder in folders)

    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert sorted(table["drafter.window"]) == [4, 8]
    assert table["status"].tolist() == ["completed"] * 2
    assert table["speedup"].tolist() == sorted(table["speedup"], reverse=True)
    of_folder = {str(folder): result["speedup_total"] for folder, result in zip(folders, results, strict=True)}
    assert dict(zip(table["job_dir"], table["speedup"], strict=True)) == pytest.approx(of_folder)
    assert "Sweep of 2 jobs, best first" in done.stdout

    again = run("-m", *SMOKE, *short, "drafter.window=4,8,0", f"hydra.sweep.dir={tmp_path}/sweep", timeout=500)
    assert "2 of 3 jobs had finished before: window=4, window=8" in again.stdout
    assert again.returncode == 1


def test_a_killed_sweep_goes_on_and_ends_with_the_same_table(tmp_path: Path) -> None:
    short = ["dataset.limit=1", "decoding.max_new_tokens=8", "drafter.costs=flat", "drafter.init=ngram"]

    def command(name: str) -> list[str]:
        return ["-m", *SMOKE, *short, "drafter.window=2,4,6", f"hydra.sweep.dir={tmp_path / name}"]

    def table(name: str) -> pd.DataFrame:
        measured = ["drafter.window", "status", "tokens_per_forward", "exact", "tie", "mismatch"]
        return pd.read_csv(tmp_path / name / "sweep.csv").sort_values("job")[measured].reset_index(drop=True)

    assert run(*command("whole"), timeout=500).returncode == 0
    running = Forked(ROOT / "run.py", command("killed"), cwd=ROOT, env=environment())
    wait_until(running, (tmp_path / "killed/window=2/result.json").exists)
    os.killpg(running.pid, signal.SIGKILL)  # its job gets the kernel's signal
    running.communicate()
    assert not (tmp_path / "killed/window=6/result.json").exists()
    again = run(*command("killed"), timeout=500)
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(table("killed"), table("whole"))
