"""task=trace: every drafter's steps, told so that the output can be told again from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import SMOKE, said_by
from selfdraft.data.sources import load_bundled
from selfdraft.drafters.presets import PRESETS

ASK = (*SMOKE, "task=trace", "decoding.max_new_tokens=12")


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "trained"])  # which needs an adapter
def test_the_output_can_be_told_from_the_trace_of_any_drafter(tmp_path: Path, name: str) -> None:
    said = said_by(tmp_path, *ASK, f"drafter={name}", "prompt='again and again and again'")
    told = json.loads((tmp_path / "trace.json").read_text())
    output, end = [], len(told["prompt_ids"])
    for step in told["steps"]:
        assert step["position"] == end - 1
        assert step["root"]["id"] == [*told["prompt_ids"], *output][-1]
        written = [step["nodes"][i]["id"] for i in step["accepted"]]
        output += written + ([step["bonus"]["id"]] if step["bonus"] else [])
        end += step["emitted"]
    assert output == told["output_ids"] and len(output) == told["new_tokens"] == 12
    assert f"12 tokens in {told['target_forwards']} target forwards" in said
    assert str(tmp_path / "trace.json") in said


def test_without_a_prompt_the_dataset_s_first_is_traced(tmp_path: Path) -> None:
    said_by(tmp_path, *ASK, "drafter=lookahead", "dataset=bundled")
    told = json.loads((tmp_path / "trace.json").read_text())
    assert told["prompt"] == load_bundled()[0].turns[0]
    assert any(node["state"] == "probe" for step in told["steps"] for node in step["nodes"])
