"""An answer ends where the model has no more positions, and the results say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import read_lines, said_by, write_prompts
from few_positions import POSITIONS, small_model
from selfdraft.models.reference.stock import REFERENCES

PROMPT = "0123456"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that choose a model of few positions."""
    return small_model(tmp_path_factory.mktemp("model") / "small")


def test_an_evaluation_records_answers_cut_by_the_positions(tmp_path: Path, small: list[str]) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", {"id": "long", "prompt": PROMPT * 4}, {"id": "short", "prompt": "."})
    run = tmp_path / "run"
    said = said_by(
        run, *small, "dataset=jsonl", f"dataset.path='{prompts}'",
        f"task.references=[{','.join(REFERENCES)}]", "decoding.max_new_tokens=30", "drafter=pool",
    )  # fmt: skip
    long, short = sorted(read_lines(run), key=lambda line: line["id"])
    assert long["ended"] == "positions" and short["ended"] in ("eos", "length")
    assert len(long["prompt_ids"]) + long["new_tokens"] == POSITIONS
    # References get no more room than we have: else they write another text.
    assert all(reference["same_as_baseline"] for line in (long, short) for reference in line["references"].values())
    assert long["references"][REFERENCES[0]]["new_tokens"] == long["new_tokens"] - 1
    assert "1 of 2 answers ended before decoding.max_new_tokens=30" in " ".join(said.split())


@pytest.mark.parametrize("task", ["generate", "trace"])
def test_an_answer_cut_by_the_positions_is_reported(tmp_path: Path, small: list[str], task: str) -> None:
    ask = (*small, f"task={task}", f"prompt={PROMPT}", "drafter=pool")
    warning = "warning: the answer ended where the model had no more positions"
    assert warning in said_by(tmp_path / "cut", *ask, "decoding.max_new_tokens=60")
    assert warning not in said_by(tmp_path / "whole", *ask, "decoding.max_new_tokens=5")
    if task == "trace":
        ended = [json.loads((tmp_path / name / "trace.json").read_text())["ended"] for name in ("cut", "whole")]
        assert ended == ["positions", "length"]
