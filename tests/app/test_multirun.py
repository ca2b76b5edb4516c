"""A sweep of the real program: one folder and process per job, and one table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from command_line import SMOKE, read_result, run

pytestmark = pytest.mark.slow


def test_a_sweep_of_two_by_two_gives_four_results_and_one_sorted_table(tmp_path: Path) -> None:
    swept = ["drafter.window=4,8", "drafter.refine_steps=1,2"]
    short = ["dataset.limit=1", "decoding.max_new_tokens=8", "logger=wandb"]
    done = run("-m", *SMOKE, *short, *swept, f"hydra.sweep.dir={tmp_path}/sweep", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr

    folders = [tmp_path / "sweep" / str(number) for number in range(4)]
    results = [read_result(folder) for folder in folders]
    assert all(result["prompts"] == 1 and result["lossless"]["mismatch"] == 0 for result in results)
    assert all(len(list((folder / "wandb").glob("offline-run-*"))) == 1 for folder in folders)

    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert sorted(zip(table["drafter.window"], table["drafter.refine_steps"], strict=True)) == [
        (4, 1), (4, 2), (8, 1), (8, 2)
    ]  # fmt: skip
    assert table["status"].tolist() == ["completed"] * 4
    assert table["speedup"].tolist() == sorted(table["speedup"], reverse=True)
    of_folder = {str(folder): result["speedup"]["median"] for folder, result in zip(folders, results, strict=True)}
    assert dict(zip(table["job_dir"], table["speedup"], strict=True)) == pytest.approx(of_folder)
    assert "Sweep of 4 jobs, best first" in done.stdout
