"""The picture of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdraft.tracking.display.sweep_picture import importances, plot_sweep

JOBS = [{"window": str(window), "init": init, "$seed": "0"} for window in (16, 4, 8) for init in ("a", "b")]
SPEEDUPS = [float(job["window"]) + (job["init"] == "b") * 0.1 for job in JOBS]


def test_it_is_drawn_where_something_varies(tmp_path: Path) -> None:
    path = tmp_path / "sweep.png"
    assert plot_sweep(path, JOBS, SPEEDUPS, "speedup_total_interval/low")
    assert path.read_bytes().startswith(b"\x89PNG")
    for jobs in ([], JOBS[:1], [JOBS[0]] * 5):
        other = tmp_path / "other.png"
        assert not plot_sweep(other, jobs, SPEEDUPS[: len(jobs)], "objective") and not other.exists()
    assert plot_sweep(tmp_path / "few.png", JOBS[:2], [1.0, 1.0], "objective"), "without what matters"


def test_what_decides_matters_most() -> None:
    found = importances(["init", "window"], JOBS * 4, SPEEDUPS * 4)
    assert next(iter(found)) == "window" and found["window"] > 0.5
    assert sum(found.values()) == pytest.approx(1)
    assert importances(["init", "window"], JOBS[:3], SPEEDUPS[:3]) == {}
    assert importances(["init", "window"], JOBS, [2.0] * len(JOBS)) == {}
