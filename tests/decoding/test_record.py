"""The record of a decoding: a clock whose phases add up, and steps from which the output can be rebuilt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.decoding import record
from selfdraft.decoding.record import PHASES, Generation, PhaseClock
from selfdraft.drafters.base import Draft, Step


class Time:
    """A clock that the test moves by hand, so that the sums are exact."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    fake = Time()
    monkeypatch.setattr(record, "time", fake)
    yield fake


def test_a_phase_counts_the_time_within_it(time: Time) -> None:
    clock = PhaseClock()
    for seconds in (1.0, 2.5):
        time.now += 7  # outside
        with clock("draft"):
            time.now += seconds
    with clock("prefill"):
        time.now += 10
    assert clock.seconds == {"prefill": 10, "draft": 3.5, "verify": 0, "commit": 0, "other": 0}
    assert clock.decode_s == 3.5  # the prefill is measured apart


def test_the_rest_is_the_time_outside_named_phases(time: Time) -> None:
    clock = PhaseClock()
    with clock("draft"):
        time.now += 4  # before: none of the rest's business
    with clock.rest("other"):
        time.now += 1
        with clock("draft"):
            time.now += 2
        time.now += 0.5
        with clock("verify"):
            time.now += 8
    assert clock.seconds == {"prefill": 0, "draft": 6, "verify": 8, "commit": 0, "other": 1.5}
    assert sum(clock.seconds.values()) == 4 + 11.5


def test_clocks_add_up_phase_by_phase(time: Time) -> None:
    one, other = PhaseClock(), PhaseClock()
    for clock, seconds in ((one, 1.0), (other, 2.0)):
        for factor, phase in enumerate(PHASES, start=1):
            with clock(phase):
                time.now += factor * seconds
    one.add(other)
    assert one.seconds == {phase: 3.0 * factor for factor, phase in enumerate(PHASES, start=1)}
    assert other.seconds["draft"] == 4.0
    assert one.decode_s == sum(one.seconds[phase] for phase in PHASES if phase != "prefill")


def test_time_counts_even_if_the_phase_raises(time: Time) -> None:
    clock = PhaseClock()
    with pytest.raises(RuntimeError), clock("verify"):
        time.now += 3
        raise RuntimeError
    assert clock.seconds["verify"] == 3


def step(tree: TokenTree, path: tuple[int, ...], emitted: tuple[int, ...], source: str = "test") -> Step:
    predictions = torch.zeros(len(tree) + 1, dtype=torch.long)
    return Step(Draft(tree, source), torch.zeros(len(tree) + 1, 8), predictions, path, emitted)


BRANCHED = TokenTree(
    torch.tensor([4, 5, 6, 7]), torch.tensor([ROOT, ROOT, 0, 1]), torch.tensor([True, True, False, True])
)


def test_steps_are_counted_and_written_down() -> None:
    generation = Generation([1, 2])
    generation.add(step(TokenTree.chain([4, 5, 6]), (0, 1), (4, 5, 9), "lookup"))
    generation.add(step(BRANCHED, (1, 3), (5, 7, 3), "tree"))
    generation.add(step(TokenTree.empty(), (), (8,), ""))
    assert generation.output == [4, 5, 9, 5, 7, 3, 8]
    assert generation.counts.new_tokens == 7
    assert generation.counts.acceptance_by_depth() == [
        {"offered": 2, "accepted": 2},
        {"offered": 2, "accepted": 2},
        {"offered": 1, "accepted": 0},
    ]
    assert generation.steps == [
        [[4, 5, 6], None, [0, 1], 9, "lookup", None],
        [[4, 5, 6, 7], [ROOT, ROOT, 0, 1], [1, 3], 3, "tree", [2]],
        [[], None, [], 8, "", None],
    ]


@pytest.mark.parametrize("emitted", [1, 2, 3, 4])
def test_after_a_stop_only_emitted_tokens_count(emitted: int) -> None:
    generation = Generation([1])
    generation.add(step(TokenTree.chain([4, 5, 6]), (0, 1, 2), (4, 5, 6, 9)[:emitted]))
    accepted = min(emitted, 3)
    assert generation.counts.new_tokens == emitted
    assert [d["accepted"] for d in generation.counts.acceptance_by_depth()] == [int(d < accepted) for d in range(3)]
    assert generation.steps[0][2] == list(range(accepted))


@pytest.mark.parametrize("emitted", [1, 2, 3, 4])
def test_a_step_cut_by_a_stop_replays_to_the_emitted_tokens(emitted: int) -> None:
    """The accepted tokens, then the bonus if there was one: a viewer that colours tokens must not show one twice."""
    generation = Generation([1])
    generation.add(step(TokenTree.chain([4, 5, 6]), (0, 1, 2), (4, 5, 6, 9)[:emitted]))
    tokens, _, path, bonus, *_ = generation.steps[0]
    assert [tokens[node] for node in path] + ([] if bonus is None else [bonus]) == generation.output
