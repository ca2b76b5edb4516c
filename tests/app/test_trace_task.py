"""task=trace: the steps of each way of drafting, from which the output can be rebuilt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import SMOKE, said_by
from selfdraft.data.sources import load_bundled
from selfdraft.drafters import PROPOSALS

ASK = (*SMOKE, "task=trace", "decoding.max_new_tokens=8")


@pytest.mark.parametrize("name", PROPOSALS)  # the others are these with another path
def test_the_output_can_be_rebuilt_from_the_trace(tmp_path: Path, name: str) -> None:
    said = said_by(tmp_path, *ASK, f"drafter={name}", "prompt='again and again and again'")
    trace = json.loads((tmp_path / "trace.json").read_text())
    output, end = [], len(trace["prompt_ids"])
    for step in trace["steps"]:
        assert step["position"] == end - 1
        assert step["root"]["id"] == [*trace["prompt_ids"], *output][-1]
        written = [step["nodes"][i]["id"] for i in step["accepted"]]
        output += written + ([step["bonus"]["id"]] if step["bonus"] else [])
        end += step["emitted"]
    assert output == trace["output_ids"] and len(output) == trace["new_tokens"] == 8
    assert f"8 tokens in {trace['target_forwards']} target forwards" in said
    assert str(tmp_path / "trace.json") in said


def test_without_a_prompt_the_dataset_s_first_prompt_is_traced(tmp_path: Path) -> None:
    said_by(tmp_path, *ASK, "drafter=lookahead", "dataset=bundled")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["prompt"] == load_bundled()[0].turns[0]
    assert any(node["state"] == "probe" for step in trace["steps"] for node in step["nodes"])
