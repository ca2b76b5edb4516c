"""Sweeps by launchers of others."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from command_line import SMOKE, run
from selfdraft.app.sweeps.resuming_launcher import complete_ray

RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
PLUGINS = {"submitit_local": "hydra_submitit_launcher", "ray": "hydra_ray_launcher"}


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ({"address": None}, {"address": None, "log_to_driver": False}),
        ({"address": "auto"}, {"address": "auto", "log_to_driver": False, "object_store_memory": None}),
        (
            {"address": "auto", "log_to_driver": True},
            {"address": "auto", "log_to_driver": True, "object_store_memory": None},
        ),
    ],
)
def test_ray_is_quiet_and_accepts_a_cluster_that_runs(init: dict[str, object], expected: dict[str, object]) -> None:
    launcher = OmegaConf.create({"_target_": RAY, "ray": {"init": init}})
    complete_ray(launcher)
    assert launcher.ray.init == expected


def test_other_launchers_keep_their_options() -> None:
    launcher = OmegaConf.create({"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"})
    complete_ray(launcher)
    assert list(launcher) == ["_target_"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "submitit_local", "ray"])
def test_every_job_is_a_row_and_a_failed_one_has_its_reason(launcher: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.{PLUGINS[launcher]}" if launcher in PLUGINS else "hydra")
    short = ["dataset.limit=1", "decoding.max_new_tokens=4", "drafter.costs=flat", f"hydra/launcher={launcher}"]
    done = run("-m", *SMOKE, *short, "drafter.window=4,0,8", f"hydra.sweep.dir={tmp_path}/sweep", timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv").set_index("drafter.window")
    assert table["status"].to_dict() == {4: "completed", 0: "failed", 8: "completed"}
    assert "drafter.window=0" in table.loc[0, "reason"]
    assert (table.loc[[4, 8], "speedup"] > 0).all()
    assert "Sweep of 3 jobs, best first" in done.stdout
    assert "_run_job pid=" not in done.stdout  # Ray's copy of what jobs print
    assert "Traceback" not in done.stderr
    assert {"window=4", "window=0", "window=8"} < {path.name for path in (tmp_path / "sweep").iterdir()}

    written = (tmp_path / "sweep" / "window=4" / "result.json").stat().st_mtime_ns
    more = [*short, f"hydra.sweep.dir={tmp_path}/sweep"]
    again = run("-m", *SMOKE, *more, "drafter.window=4,8,2", timeout=500)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of 3 jobs had finished before" in again.stdout
    assert (tmp_path / "sweep" / "window=4" / "result.json").stat().st_mtime_ns == written
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv").set_index("drafter.window")
    assert table["status"].to_dict() == {4: "completed", 0: "failed", 8: "completed", 2: "completed"}

    # Another number of prompts makes another job, though its name would be the same.
    other = run("-m", *SMOKE, *more, "drafter.window=4,8", "dataset.limit=2", timeout=500)
    assert other.returncode == 0, other.stdout + other.stderr
    assert "finished before" not in other.stdout
    assert (tmp_path / "sweep" / "window=4-2" / "result.json").exists()


@pytest.mark.slow
def test_an_address_without_a_ray_cluster_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    ray = ("hydra/launcher=ray", "hydra.launcher.ray.init.address=auto")
    done = run("-m", *SMOKE, *ray, "drafter.window=4,8", f"hydra.sweep.dir={tmp_path}/sweep", RAY_ADDRESS="")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("selfdraft: hydra.launcher.ray.init.address: no Ray cluster")
    assert "Traceback" not in done.stderr
