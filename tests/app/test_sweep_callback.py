"""Sweeps by launchers of others."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from command_line import SMOKE, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("launcher", ["basic", "submitit_local"])
def test_every_job_is_a_row_and_a_failed_one_has_its_reason(launcher: str, tmp_path: Path) -> None:
    if launcher == "submitit_local":
        pytest.importorskip("submitit")
    short = ["dataset.limit=1", "decoding.max_new_tokens=4", "drafter.costs=flat", f"hydra/launcher={launcher}"]
    done = run("-m", *SMOKE, *short, "drafter.window=4,0,8", f"hydra.sweep.dir={tmp_path}/sweep", timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv").set_index("drafter.window")
    assert table["status"].to_dict() == {4: "completed", 0: "failed", 8: "completed"}
    assert "drafter.window=0" in table.loc[0, "reason"]
    assert (table.loc[[4, 8], "speedup"] > 0).all()
    assert "Sweep of 3 jobs, best first" in done.stdout
    assert "Traceback" not in done.stderr
