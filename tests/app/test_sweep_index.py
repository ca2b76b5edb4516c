"""Which jobs of a sweep are the same."""

from __future__ import annotations

from typing import Any

from selfdraft.app.sweeps.sweep_index import identity_of

JOB: dict[str, Any] = {
    "task": {"name": "evaluate", "repeats": 1},
    "drafter": {"window": 4},
    "finetune": {"steps": 10},
    "logger": {"mode": "offline"},
}


def test_a_job_is_known_by_what_its_task_reads() -> None:
    job = identity_of(JOB)
    assert job == identity_of({**JOB, "logger": {"mode": "online"}})
    assert job == identity_of({**JOB, "finetune": {"steps": 10, "new": None}})  # which an evaluation does not read
    assert job != identity_of({**JOB, "drafter": {"window": 8}})
    assert job != identity_of({**JOB, "task": {"name": "evaluate", "repeats": 2}})


def test_a_training_is_known_by_its_own_options() -> None:
    trained = {**JOB, "task": {"name": "finetune"}}
    assert identity_of(trained) != identity_of({**trained, "finetune": {"steps": 20}})
    assert identity_of({"a": 1}) != identity_of({"a": 2})  # an app of another kind has no tasks
