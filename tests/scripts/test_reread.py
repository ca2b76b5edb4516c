"""experiments/jump/reread.py: prompts about texts; foreign files are refused, and nobody's file is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from script_module import script_module


def test_every_text_becomes_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one {x}"}\n{"text": " "}\n{"text": "two"}\n')
    script_module("reread", "experiments/jump").main([str(tmp_path), str(tmp_path / "out.jsonl")])
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [each["turns"] for each in written] == [["Summarize: one {x} two"], ["Translate to German: two"]]


@pytest.mark.parametrize("line", ['{"a": 1}', "[1]", "no JSON", '{"text": 3}'])
def test_a_foreign_file_gives_one_line(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.jsonl").write_text(line + "\n")
    assert script_module("reread", "experiments/jump").main([str(tmp_path), str(tmp_path / "out.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "was not written by task=distill_data" in said and said.count("\n") == 1


def test_a_file_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "out.jsonl").write_text("mine")
    assert script_module("reread", "experiments/jump").main([str(tmp_path), str(tmp_path / "out.jsonl")]) == 2
    assert (tmp_path / "out.jsonl").read_text() == "mine" and "exists already" in capsys.readouterr().err
