"""Jacobi with several candidate blocks, with sub-blocks, and its statistics of convergence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from made import made
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context
from selfdraft.drafters.jacobi import JacobiConfig
from stub_target import Rule, StubTarget, cycle, script, successor


def decode(
    config: JacobiConfig, rule: Rule, prompt: Sequence[int], length: int, pad: int = 0, costs: CostCurve | None = None
) -> Generation:
    target = StubTarget(rule, pad_id=pad)
    target.costs = costs or target.costs
    return Decoder(target, made(target, config), Stopping(frozenset(), length)).decode(prompt)


def literal(target: StubTarget, **options: object) -> list[int]:
    """The block that is verified first, after the token 1."""
    drafter = made(target, JacobiConfig(init="pad", mode="literal", **options))
    context = Context(0, [1], 1, 100, np.random.default_rng(0))
    target.allocate(1, 0)
    drafter.start(context)
    return drafter.propose(context).tree.tokens.tolist()


def test_gauss_seidel_fixes_one_more_token_per_sub_block() -> None:
    """Counting up, a token needs the one before it: Jacobi mends one a forward, and so do sub-blocks of one token."""
    target = StubTarget(successor, pad_id=40)
    assert literal(target, window=4, refine_steps=1, order="gauss_seidel", sub_blocks=4) == [2, 3, 4, 5]
    assert target.forwards == 4
    target = StubTarget(successor, pad_id=40)
    # First half from the filler: 2 41. Second half from that: after 41 comes 42, after the filler 41.
    assert literal(target, window=4, refine_steps=1, order="gauss_seidel", sub_blocks=2) == [2, 41, 42, 41]
    assert target.forwards == 2


def test_gauss_seidel_stops_with_the_sweep_that_changes_nothing() -> None:
    target = StubTarget(lambda text: min(text[-1] + 1, 3), pad_id=3)
    options = {"window": 4, "refine_steps": 9, "order": "gauss_seidel", "sub_blocks": 2}
    assert literal(target, **options) == [2, 3, 3, 3]
    assert target.forwards == 4  # two sweeps of two


def test_the_block_with_the_longest_match_is_carried_over() -> None:
    """After 1 2 comes 3 9 by the longer match and 7 8 by the carried guesses' side: the second one is accepted."""
    text = [1, 2, 3, 9, 5, 2, 7, 8, 6, 1, 2, 7, 8, 6, 4, 11, 12, 13, 14, 15]
    config = JacobiConfig(window=3, refine_steps=9, init="ngram", candidates=2, costs="flat")
    generation = decode(config, script(text), text[:11], 9)
    tokens, parents, path, bonus, _, _ = generation.steps[0]
    assert (tokens, parents) == ([3, 9, 5, 7, 8, 6], [-1, 0, 1, -1, 3, 4])
    assert (path, bonus) == ([3, 4, 5], 4)
    assert generation.output == text[11:]


def test_candidates_begin_with_the_carried_guesses_then_those_of_the_init() -> None:
    generation = decode(
        JacobiConfig(window=2, refine_steps=9, init="ngram", candidates=2, costs="flat"), successor, [1, 5, 6, 1], 8
    )
    first, second = generation.steps[0][0], generation.steps[1][0]
    assert first[:2] == [5, 6]
    assert second[:2] == [6, 7]  # what the first pass predicted after its wrong 5 and 6, for the positions after 2


def test_diagnostics_show_how_blocks_converged() -> None:
    config = JacobiConfig(window=3, refine_steps=9, init="pad", candidates=1, costs="flat")
    # Whatever comes before, the second pass predicts: one token with the first, four with the second, and again.
    diagnostics = decode(config, script(list(range(1, 30))), [1], 21).diagnostics
    # The last of nine steps is not observed; blocks of two passes.
    assert diagnostics["tokens_fixed_per_pass"] == [0, 4, 0, 0, 4]
    assert diagnostics["passes_per_block"] == [0, 0, 4]
    assert diagnostics["right_before_their_turn_per_pass"] == [8]
    assert decode(JacobiConfig(), cycle(3), [1], 1).diagnostics["passes_per_block"] == []


def test_iterates_are_the_inputs_of_every_pass() -> None:
    config = JacobiConfig(window=4, refine_steps=2, mode="literal", init="repeat_last", candidates=1)
    generation = decode(config, script(list(range(1, 30))), [1], 21)
    (number, at, first), (again, there, second), (_, _, last) = generation.iterates[:3]
    assert (number, again) == (1, 1) and at == there == 1
    assert first == [1, 1, 1, 1] and len(second) == 4
    assert generation.steps[0][0] == last  # the block that was verified


def test_a_right_guess_after_a_wrong_one_is_counted_as_early() -> None:
    # The filler 9 is wrong for the first two positions and right for the third.
    config = JacobiConfig(window=3, refine_steps=1, init="pad", candidates=1, costs="flat")
    generation = decode(config, script([1, 2, 3, 9, 4, 5, 6, 7]), [1], 5, pad=9)
    assert generation.diagnostics["right_before_their_turn_per_pass"][1] == 2  # at the first step, and at the second


def test_gauss_seidel_is_refused_where_a_pass_is_one_forward() -> None:
    with pytest.raises(UserError, match=r"^drafter\.order=gauss_seidel .*: use drafter\.mode=literal$"):
        JacobiConfig(order="gauss_seidel", candidates=1, costs="flat")


FREE = CostCurve((1, 64), (1.0, 1.0))
STEEP = CostCurve((1, 64), (1.0, 64.0))


def test_at_measured_costs_an_ngram_block_and_the_carried_one_are_drafted_side_by_side() -> None:
    """After 1 comes 5 6 earlier in the text; the first pass predicts 6 7 after these wrong guesses."""
    generation = decode(JacobiConfig(window=2, candidates=1), successor, [1, 5, 6, 1], 6, costs=FREE)
    first, second = generation.steps[0], generation.steps[1]
    assert first[0] == [5, 6]
    assert second[0] == [6, 7]  # no match after 2: the carried guesses only
    assert generation.output == [2, 3, 4, 5, 6, 7]


def test_where_a_longer_forward_costs_as_much_as_its_tokens_nothing_is_drafted() -> None:
    generation = decode(JacobiConfig(), successor, [1, 5, 6, 1], 6, costs=STEEP)
    assert all(step[0] == [] for step in generation.steps)
    assert generation.counts.target_forwards == len(generation.output) == 6


def test_the_width_of_a_block_follows_what_was_right() -> None:
    """Every fourth token breaks the cycle, so a whole block is wrong after three tokens."""
    text = [1, 2, 3, 4] * 3 + [x for n in range(13) for x in (1, 2, 3, 50 + n)]
    costs = CostCurve((1, 2, 64), (1.0, 1.15, 10.0))
    steps = decode(JacobiConfig(window=8), script(text), text[:12], 50, costs=costs).steps
    drafted = [len(step[0]) for step in steps]
    assert max(drafted[:3]) >= 4  # what followed in the prompt
    assert 1 <= sum(drafted[-10:]) / 10 < 4
