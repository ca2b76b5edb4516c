"""invariance_cost.py: ratios worked out by hand, from the seconds and counts of made-up decodings."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from made_up import made_up
from script_module import script_module

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    return script_module("invariance_cost", "experiments/invariance")


def test_a_row_has_ratios_by_token_and_by_forward() -> None:
    module = script()
    # By token 2/10 over 1/10, 3/10 over 2/10, 4/5 over 1/10; by forward 2/10 over 1/5, 3/10 over 2/10, 4/5 over 1/10.
    pairs = [
        module.Pair(made_up(1.0, 10, 5), made_up(2.0, 10, 10)),
        module.Pair(made_up(2.0, 10, 10), made_up(3.0, 10, 10)),
        module.Pair(made_up(1.0, 10, 10), made_up(4.0, 5, 5)),
    ]
    name, same, plain, invariant, token, tokens, forward, forwards = module.row("x", pairs).strip("| ").split(" | ")
    assert (name, same) == ("x", "2 of 3")
    assert plain == f"{4000 / 30:.2f} / {4000 / 25:.2f}"
    assert invariant == f"{9000 / 25:.2f} / {9000 / 25:.2f}"
    assert (token, forward) == ("2.000 [1.500, 8.000]", "1.500 [1.000, 8.000]")
    assert tokens.startswith(f"{9 / 25 / (4 / 30):.3f} [1.500, ")
    assert forwards.startswith(f"{9 / 25 / (4 / 25):.3f} [1.000, ")


def test_prompts_are_spread_evenly(tmp_path: Path) -> None:
    every = script().chosen(None, 10_000)
    assert script().chosen(None, 6) == every[:: len(every) // 6]


@pytest.mark.parametrize("arguments", [["nowhere.jsonl"], ["--prompts", "0"]])
def test_wrong_arguments_give_one_clear_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert script().main(arguments) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("invariance_cost: ")
