"""exhaustive.py: the advice beside all drafters, on the random tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from made import measure_once
from script_module import script_module


@pytest.fixture(autouse=True)
def quick_costs(tmp_path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_once(patch)
        patch.setenv("SELFDRAFT_CACHE", str(tmp_path / "cache"))
        yield


@pytest.mark.slow
def test_all_drafters_are_measured_beside_the_advised_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exhaustive = script_module("exhaustive", "experiments/advise")
    small = [
        "--model",
        "tiny",
        "--prompts",
        "2",
        "--tokens",
        "4",
        "--confirmed",
        "1",
        "--file",
        str(tmp_path / "x.json"),
    ]
    drafters = ["--candidates", "suffix", "early_exit", "early_exit exit_layer=9", "--more", "recycling"]
    assert exhaustive.main([*small, *drafters, "--", "hardware.threads=1"]) == 0
    said = capsys.readouterr().out
    numbers = json.loads((tmp_path / "x.json").read_text())
    assert {name.split()[0] for name in numbers["measured"]} == {"none", "suffix", "early_exit", "recycling"}
    assert {name.split()[0] for name in numbers["predicted"]} == {"suffix", "early_exit"}
    best = max(numbers["measured"].values())
    assert numbers["behind"] == pytest.approx(1 - numbers["measured"][numbers["advice"]["drafter"]] / best)
    assert ("NOT within 5% of the best" in said) == (numbers["behind"] > 0.05)
    assert "left out: early_exit exit_layer=9" in said and numbers["wrong"] == []
    assert said.count("\n| ") == 5  # the head, and a row for each
    assert not (tmp_path / "cache" / "advice").exists()  # a study changes nothing that drafter=auto takes
