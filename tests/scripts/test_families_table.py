"""scripts/families.py: a family that is driven, one that is refused, and what goes wrong is a row."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType

import pytest

from script_module import script_module

SAMPLE = ["qwen3_moe", "deepseek_v3", "gpt_oss", "cohere2"]


@pytest.fixture
def script() -> ModuleType:
    return script_module("families")


def test_a_driven_and_a_refused_family_are_rows(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PROMPTS", script.PROMPTS[:1])
    monkeypatch.setattr(script, "NEW_TOKENS", 10)
    page = tmp_path / "families.md"
    assert script.main(["llama", "mamba", "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "python scripts/families.py llama mamba" in text
    assert "Of 2 families (model types), **1 work**, 1 are refused with a reason" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| *llama* |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert len(cells) == len(script.COLUMNS)
    assert cells[0] == "1.00" and all(float(cell) > 0 for cell in cells)
    assert "| mamba | it keeps a state in its layers, and its forward goes on from a text one token at a time" in text


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_of_the_families_is_lossless(script: ModuleType, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """`make families` tries them all."""
    monkeypatch.setattr(script, "NEW_TOKENS", 8)
    row = script.tried(family)
    assert row.kind == "driven"
    unlike = {name: cell for name, cell in row.cells.items() if not cell[0].isdigit()}
    assert unlike.keys() <= {"width_skip", "pseudo_tokens"}
    assert all(cell.startswith("refused: ") for cell in unlike.values())


def test_a_crash_or_an_endless_loop_is_a_row(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "tried", lambda family: os._exit(3))
    assert script.in_its_own_process("llama").reason == "the process ended with status 3"
    monkeypatch.setattr(script, "tried", lambda family: time.sleep(60))
    monkeypatch.setattr(script, "SECONDS", 0)
    assert script.in_its_own_process("llama").reason == "it took more than 0 seconds"


def test_an_exception_of_transformers_is_a_row(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(family: str) -> None:
        raise RuntimeError("sizes | do not fit\nat all")

    monkeypatch.setattr(script, "small_model", broken)
    row = script.tried("llama")
    assert (row.kind, row.reason) == ("not tried", "RuntimeError: sizes / do not fit")


def test_wrong_texts_and_refused_drafters_are_cells(script: ModuleType) -> None:
    names = script.COLUMNS
    cells = dict.fromkeys(names, "1.50") | {
        "plain": "**differs**",
        "swift": "refused: no MLP",
        "pool": "refused: no MLP",
    }
    text = script.page([script.Row("here", cells=cells)], "python scripts/families.py here")
    assert "| here | **differs** | 1.50 | refused (1) | 1.50 | refused (2) |" in text
    assert "1. `pool`: no MLP" in text and "2. `swift`: no MLP" in text
    assert f"Of {len(names)} cells, {len(names) - 3} are right, 1 are wrong and 2 are refused." in text


def test_an_unknown_family_is_one_line(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["lama"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("families: there is no family 'lama' in transformers ")


def test_an_unwritable_file_is_refused_before_any_family_is_tried(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "in_its_own_process", None)  # calling it would be a TypeError
    assert script.main(["llama", "--out", str(tmp_path)]) == 2
    assert script.main(["llama", "--out", str(tmp_path / "nowhere" / "x.md")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"families: --out {tmp_path}: there is a folder where a file is needed"
    assert second == f"families: --out {tmp_path}/nowhere/x.md: the folder {tmp_path}/nowhere does not exist"


def test_a_wrong_text_ends_with_status_1(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = script.Row("llama", cells=dict.fromkeys(script.COLUMNS, "1.50") | {"pool": "**differs**"})
    monkeypatch.setattr(script, "in_its_own_process", lambda family: row)
    with pytest.raises(SystemExit) as ended:
        script.main(["llama", "--out", str(tmp_path / "x.md")])
    assert ended.value.code == 1 and "**differs**" in (tmp_path / "x.md").read_text()
