"""scripts/paired.py: what it is given, and ratios worked out by hand from made-up decodings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from selfdraft.core.counts import Counts
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters import DRAFTERS
from selfdraft.drafters.pool import PoolConfig
from stub_target import StubTarget, cycle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def paired() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paired", ROOT / "scripts" / "paired.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(seconds: float, tokens: int, forwards: int) -> Generation:
    generation = Generation([1], output=list(range(tokens)), counts=Counts(new_tokens=tokens, target_forwards=forwards))
    generation.clock.seconds |= {"verify": seconds, "prefill": 100.0}  # which is no decoding
    return generation


def test_a_row_compares_with_the_first_prompt_by_prompt_and_over_all(paired: ModuleType) -> None:
    first = [run(1.0, 10, 10), run(1.0, 10, 10), run(1.0, 40, 40)]
    mine = [run(1.0, 20, 5), run(2.0, 10, 5), run(1.0, 30, 10)]
    spec, forward, tokens, median, total = paired.row("pool", mine, first).strip("| ").split(" | ")
    assert (spec, forward, tokens) == ("pool", "3.00", "15.0")
    assert median.startswith("0.750 [0.500, 2.000]") and total.startswith(f"{15 / 20:.3f} [")


def test_everyone_decodes_every_prompt(paired: ModuleType) -> None:
    target = StubTarget(cycle(5))
    decoders = [
        Decoder(target, DRAFTERS[name](target, DRAFTERS[name].Config()), Stopping(frozenset(), 9))
        for name in ("none", "prompt_lookup", "suffix")
    ]
    runs = paired.measure(decoders, [[1, 2], [1, 2, 3], [3]])
    assert [[run.output[0] for run in of_one] for of_one in runs] == [[3, 4, 4]] * 3
    assert sum(run.counts.target_forwards for run in runs[0]) == 27


def test_options_are_those_of_the_drafter(paired: ModuleType) -> None:
    assert paired.config_of("pool sources=[suffix] edges=2") == PoolConfig(sources=["suffix"], edges=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nowhere.jsonl", "pool"], "There is no file nowhere.jsonl"),
        (["nowhere.jsonl", "polo"], "polo: no such drafter; choose one of none, "),
        (["nowhere.jsonl", "pool edgs=3"], "edgs: no such option (did you mean edges?)"),
        (["nowhere.jsonl", "pool edges=0"], "drafter.edges=0: must be at least 1"),
        (["nowhere.jsonl", "pool", "--tokens", "0"], "--per-family and --tokens: at least 1"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    paired: ModuleType, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paired.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"paired: {said}")
