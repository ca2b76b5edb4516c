"""No user file runs code: each kind, with a payload in it, is loaded under Python's audit hook."""

from __future__ import annotations

import json

import pytest

from command_line import ROOT, environment
from forked import run_forked

LOADED = {"a dataset of objects", "a model", "a cost file", "an exported run", "a dataset folder with a script"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Audit events while each kind of file was loaded; the last one is a payload that does run."""
    folder = tmp_path_factory.mktemp("files")
    done = run_forked(ROOT / "tests" / "audited.py", [str(folder)], cwd=ROOT, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_audit_hook_sees_executed_code(results: dict[str, dict]) -> None:
    seen = results["a payload"]
    assert seen["marked"] and any(event.startswith("pickle.find_class") for event in seen["happened"])


def test_no_file_runs_code_or_is_unpickled(results: dict[str, dict]) -> None:
    assert len(results) > 20
    for kind, seen in results.items():
        if kind != "a payload":
            assert not seen["marked"] and not seen["happened"], (kind, seen)


def test_every_file_is_loaded_as_data_or_gives_one_clear_line(results: dict[str, dict]) -> None:
    for kind, seen in results.items():
        assert seen["ended"].startswith("UserError: ") or kind in LOADED | {"a payload"}, (kind, seen)
        assert "\n" not in seen["ended"] or kind == "a payload"
