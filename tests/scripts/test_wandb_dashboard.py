"""scripts/wandb_dashboard.py: the workspace shows what runs log."""

from __future__ import annotations

import json

import pytest

from example_lines import evaluation
from script_module import script_module
from selfdraft.modules.finetune import WATCHED
from selfdraft.tracking.dashboards.running import TURN, after_a_turn
from selfdraft.tracking.dashboards.wandb_media import SUMMARY, why

pytest.importorskip("wandb_workspaces")
MODULE = script_module("wandb_dashboard")
LOGGED = {
    *SUMMARY,
    *after_a_turn(evaluation(), seed=0),
    *("picture", "depth", "acceptance_by_depth", TURN),
    *("loss", WATCHED, "trainer/global_step"),
}


def test_a_dry_run_prints_panels_of_numbers_that_runs_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert MODULE.main(["--dry-run", "--project", "mine", "--name", "board"]) == 0
    sent = json.loads(capsys.readouterr().out)
    assert (sent["project"], sent["displayName"]) == ("mine", "board")
    found = sent["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in found[:4]] == ["what is gained", "why", "how it goes", "training"]
    panels = [panel["config"] for section in found for panel in section["panels"]]
    shown = {name for panel in panels for name in (*(panel.get("metrics") or ()), *(panel.get("mediaKeys") or ()))}
    axes = {panel.get(axis) for panel in panels for axis in ("xAxis", "yAxis", "zAxis")} - {None}
    assert shown | {axis.removeprefix("summary:") for axis in axes} <= LOGGED
    assert shown >= {"speedup_total", "acceptance_by_depth", "phase/draft", "loss", "picture"}


def test_without_an_account_it_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ValueError("api_key not configured")

    monkeypatch.setattr("wandb.Api", refused)
    assert MODULE.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb login" in line and "--dry-run" in line


def test_what_explains_a_speedup() -> None:
    phases = {"phases_s/prefill": 9.0, "phases_s/draft": 1.0, "phases_s/verify": 2.0, "phases_s/commit": 1.0}
    found = why({"speedup_total": 1.5, "tokens_per_forward": 3.0, **phases})
    assert found == {"step_cost": 2.0, "phase/draft": 0.25, "phase/verify": 0.5, "phase/rest": 0.25}
    assert why({}) == {}
