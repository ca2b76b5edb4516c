"""A trace has every node of every step; its terminal view shows accepted, rejected and bonus tokens."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from selfdraft.core.tree import TokenTree
from selfdraft.decoding.record import Generation
from selfdraft.drafters.base import Draft, Step
from selfdraft.tracking.display.trace import print_trace, rejected_branches, trace_steps


def spell(ids: list[int]) -> str:
    return "".join("\n" if i == 0 else chr(96 + i) for i in ids)


def step(tree: TokenTree, path: tuple[int, ...], emitted: tuple[int, ...]) -> Step:
    return Step(Draft(tree, "test"), torch.zeros(len(tree) + 1, 2), torch.zeros(len(tree) + 1), path, emitted)


@pytest.fixture
def generation() -> Generation:
    """A tree with its second branch accepted and a probe; a rejected chain; a chain cut by the end of the text."""
    made = Generation([1, 2])
    branched = TokenTree.merged([[3, 4], [5, 6, 7]]).beside(torch.tensor([8]), torch.tensor([-1]))
    made.add(step(branched, (2, 3), (5, 6, 0)))
    made.add(step(TokenTree.chain([9, 10]), (), (11,)))
    made.add(step(TokenTree.chain([12, 13]), (0, 1), (12,)))
    return made


def test_every_node_has_its_position_and_outcome(generation: Generation) -> None:
    first, second, third = trace_steps(generation, spell)
    assert [node["state"] for node in first["nodes"]] == ["rejected"] * 2 + ["accepted"] * 2 + ["rejected", "probe"]
    assert [node["parent"] for node in first["nodes"]] == [-1, 0, -1, 2, 3, -1]
    assert [node["depth"] for node in first["nodes"]] == [1, 2, 1, 2, 3, 1]
    assert (first["position"], first["root"], first["bonus"]) == (1, {"id": 2, "text": "b"}, {"id": 0, "text": "\n"})
    assert (second["position"], second["root"]["text"], second["accepted"]) == (4, "\n", [])
    assert [node["parent"] for node in second["nodes"]] == [-1, 0]
    assert (third["bonus"], third["emitted"], third["accepted"]) == (None, 1, [0])


def test_a_rejected_branch_begins_where_it_leaves_the_accepted_path(generation: Generation) -> None:
    first, second, _ = trace_steps(generation, spell)
    assert rejected_branches(first["nodes"]) == [[0, 1], [4]]
    assert rejected_branches(second["nodes"]) == [[0, 1]]


def shown(generation: Generation, branches: int, **options: bool) -> str:
    out = io.StringIO()
    print_trace(trace_steps(generation, spell), Console(file=out, width=100, **options), branches)
    return out.getvalue()


def test_the_view_shows_accepted_and_bonus_tokens_and_rejected_branches_below(generation: Generation) -> None:
    lines = [line.rstrip() for line in shown(generation, 4).splitlines()[1:]]
    assert lines == [
        "   1  [e][f][⏎]   +3, 3 rejected, 1 probes",
        "        ✗ 1: [c][d]",
        "        ✗ 3: [g]",
        "   2  [k]   +1, 2 rejected",
        "        ✗ 1: [i][j]",
        "   3  [l]   +1, 1 rejected",
        "        ✗ 2: [m]",
    ]


def test_branches_beyond_the_limit_are_counted_or_left_out(generation: Generation) -> None:
    assert "and 1 more" in shown(generation, 1)
    assert "✗" not in shown(generation, 0) and "more" not in shown(generation, 0)


def test_on_a_terminal_the_three_kinds_differ_in_colour(generation: Generation) -> None:
    said = shown(generation, 4, force_terminal=True)
    assert "\x1b[32m[e]" in said and "\x1b[1;36m[⏎]" in said and "\x1b[31m" in said
