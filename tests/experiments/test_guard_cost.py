"""guard_cost.py: speeds worked out by hand from made-up lines, and what it says of runs that are none."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

import example_lines
from script_module import script_module

ROOT = Path(__file__).parents[2]
COSTS = ROOT / "experiments" / "costs" / "smollm2_135m_xeon_2core_bf16.json"


@pytest.fixture
def guard_cost() -> ModuleType:
    return script_module("guard_cost", "experiments/guard_and_cascade")


class Doubling:
    """A forward of n tokens costs n."""

    @staticmethod
    def forward(tokens: int) -> float:
        return float(tokens)


def line(family: str, sizes: list[int], tokens: int, draft: float, stood_down: int = 1) -> dict:
    steps = [[[7] * size, None, [], 1, "", None] for size in sizes]
    phases = {"draft": draft, "verify": 2.0}
    changes = {"steps": steps, "new_tokens": tokens, "phases_s": phases, "stood_down": stood_down}
    return example_lines.line(family, family=family, **changes)


def test_a_step_costs_its_verification_and_its_share_of_drafting(guard_cost: ModuleType) -> None:
    plain = line("qa", [0, 0, 0], 3, draft=0.0)
    assert guard_cost.speed([plain], Doubling) == 1.0
    tried = line("rag", [0, 0, 3], 5, draft=0.5)  # 6 forwards' worth, and a quarter of them on top
    assert guard_cost.speed([tried], Doubling) == pytest.approx(5 / (6 * 1.25))
    assert guard_cost.speed([plain, tried], Doubling) == pytest.approx(8 / (3 + 7.5))
    assert guard_cost.row("run", [plain, tried], Doubling) == "| run | 2 of 6 | 1.000 | 0.667 | 0.762 |"


def test_answers_of_one_token_cost_no_decoding(guard_cost: ModuleType) -> None:
    plain = line("qa", [], 0, draft=0.0, stood_down=0)
    plain["phases_s"]["verify"] = 0.0
    assert guard_cost.speed([plain], Doubling) == 1.0
    assert guard_cost.speed([plain, line("qa", [0], 1, draft=0.0)], Doubling) == 1.0


def test_every_run_has_a_printed_row(
    guard_cost: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prompts.jsonl").write_text(json.dumps(line("qa", [0, 0], 2, 0.02)) + "\n")
    assert not guard_cost.main([str(tmp_path / "a"), str(tmp_path / "b"), "--hardware", str(COSTS)])
    head, _, first, second = capsys.readouterr().out.splitlines()
    assert head == "| run | paused | qa | all |"
    assert first == "| a | 1 of 2 | 0.990 | 0.990 |" and second.startswith("| b |")


@pytest.mark.parametrize(
    ("lines", "hardware", "said"),
    [
        (None, COSTS, "the guard never paused drafting; give the folder of a run"),
        (
            [line("qa", [1], 1, 0.1, stood_down=0)],
            COSTS,
            "the guard never paused drafting; give the folder of a run",
        ),
        ([line("qa", [1], 1, 0.1) | {"steps": [1]}], COSTS, "the line of id 'qa' holds no steps of a drafter"),
        ([line("qa", [1], 1, 0.1) | {"phases_s": {}}], COSTS, "the line of id 'qa' holds no steps of a drafter"),
        ([line("qa", [1], 1, 0.1)], "nowhere.json", "--hardware nowhere.json cannot be read"),
    ],
)
def test_wrong_arguments_give_one_clear_line(
    guard_cost: ModuleType, lines: list[dict] | None, hardware: Path, said: str, tmp_path: Path, capsys
) -> None:
    if lines is not None:
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert guard_cost.main([str(tmp_path), "--hardware", str(hardware)]) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith("guard_cost: ") and said in shown


@pytest.mark.parametrize(
    ("text", "said"), [('{"id": "a", "tu', "the guard never paused drafting"), ("{}\n{}\n", "prompts.jsonl")]
)
def test_incomplete_and_damaged_lines_give_one_clear_line(
    guard_cost: ModuleType, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    assert guard_cost.main([str(tmp_path), "--hardware", str(COSTS)]) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith("guard_cost: ") and said in shown
