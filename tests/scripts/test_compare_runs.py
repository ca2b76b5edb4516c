"""scripts/compare_runs.py: one row per run, and one clear line for a folder without a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from script_module import script_module
from selfdraft.tracking.atomic import write_json_atomic


def result(drafter: str) -> dict:
    return {
        "drafter": drafter, "dtype": "float32", "prompts": 2, "turns": 3, "tokens_per_forward": 1.5,
        "decode_tokens_per_s": 20.0, "baseline_tokens_per_s": 10.0, "speedup_total": 2.0,
        "speedup": {"median": 2.0, "low": 1.9, "high": 2.1}, "lossless": {"exact": 3, "tie": 0, "mismatch": 0},
        "references": {},
    }  # fmt: skip


def test_every_run_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two\x1b[2J"):
        (tmp_path / name).mkdir()
        write_json_atomic(tmp_path / name / "result.json", result(name))
    assert script_module("compare_runs").main([str(path) for path in sorted(tmp_path.iterdir())]) == 0
    header, _, one, two = capsys.readouterr().out.splitlines()
    assert header.startswith("| drafter | dtype |")
    assert one.startswith("| one | float32 | 2 (3 turns) | 1.50 | 20.0 (10.0 alone) | 2.00 [1.90, 2.10] | 2.00 |")
    assert two.startswith("| two\\x1b[2J |")


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "[" * 10**5, json.dumps(result("x") | {"speedup": None})])
def test_a_folder_without_a_result_gives_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert script_module("compare_runs").main([str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"compare_runs: {tmp_path}/result.json is ")
