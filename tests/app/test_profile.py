"""task=profile writes a cost file that reads back, and prints it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import SMOKE, ErrorLine, said_by
from selfdraft.core.costmodel import CostModel
from selfdraft.core.skipset import SkipSet


def test_a_profile_is_written_shown_and_read_back(tmp_path: Path) -> None:
    said = said_by(tmp_path, *SMOKE, "task=profile", "task.rounds=1")
    plain = json.loads((tmp_path / "profile.json").read_text())
    costs = CostModel.from_dict(plain)
    assert (costs.model, costs.dtype, costs.layers) == ("tiny llama", "float32", 4)
    assert plain["environment"]["cpu"]["cores"] > 0
    assert [line["rows"] for line in costs.by_batch] == [2, 4, 8]
    assert len(costs.by_context) >= 3
    assert costs.base(1) <= costs.sparse(SkipSet(frozenset({1, 2}), frozenset({1, 2})))(1) <= costs.sparse(SkipSet())(1)
    assert (tmp_path / "profile.png").stat().st_size > 1000  # see `quick_runs`
    steps = plain["steps"]
    assert steps["drafter"] == "jacobi" and steps["bandwidth"] > 0
    for engine in steps["engines"]:
        assert engine["floor_s"] == sum(engine["bytes"].values()) / steps["bandwidth"]
        assert engine["over_floor"] == engine["steps"][0]["forward_s"] / engine["floor_s"]
        assert [step["tokens"] for step in engine["steps"]] == [1, 8, 32]
        assert all(
            {"head", "masks", "accept", "commit", "drafter", "host"} < set(s["parts_s"]) for s in engine["steps"]
        )
    assert "matrix products" in said and "of the memory's floor" in said
    assert "all attentions" in said
    assert "context  1024" in said


def test_without_the_grid_and_a_sparse_path_only_the_parts_are_measured(tmp_path: Path) -> None:
    said = said_by(tmp_path, *SMOKE, "task=profile", "task.rounds=1", "task.grid=false", "drafter=pool")
    plain = json.loads((tmp_path / "profile.json").read_text())
    costs = CostModel.from_dict(plain)
    assert (costs.by_context, costs.by_batch, plain["drafting"]) == ((), (), None)
    assert "drafting with" not in said


def test_draft_costs_of_a_sparse_path_are_measured(tmp_path: Path) -> None:
    more = ("task=profile", "task.rounds=1", "task.grid=false", "drafter=early_exit", "drafter.draft_length=3")
    said = said_by(tmp_path, *SMOKE, *more, "drafter.path.exit_layer=2")
    drafting = json.loads((tmp_path / "profile.json").read_text())["drafting"]
    assert [step["drafted"] for step in drafting["steps"]] == [1, 3]
    assert drafting["steps"][1]["reuse"] > 0
    assert "drafting with the path early_exit" in said and "pays above" in said


def test_both_engines_are_shown_where_layers_can_be_compiled(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    more = ("task=profile", "task.rounds=1", "task.grid=false", "model.engine=compiled", "drafter=prompt_lookup")
    said = said_by(tmp_path, *SMOKE, *more)
    plain = json.loads((tmp_path / "profile.json").read_text())
    eager, compiled = plain["steps"]["engines"]
    assert plain["engine"] == "eager: task=profile takes layers apart"
    assert eager["engine"] == "eager" and "products" in eager["steps"][0]["parts_s"]
    assert compiled["engine"].startswith("compiled by OpenVINO") and "layers" in compiled["steps"][0]["parts_s"]
    assert eager["bytes"] == compiled["bytes"]
    assert "layers (one graph)" in said and "prompt_lookup" in said


def test_an_engine_that_is_not_possible_gives_one_clear_line(error_line: ErrorLine) -> None:
    for engine in ("native", "compiled"):
        said = error_line("task=profile", "task.grid=false", f"model.engine={engine}", "model.dtype=bfloat16")
        assert f"model.engine={engine}: layers run at once in float32 on a CPU only: use model.dtype=float32" in said
