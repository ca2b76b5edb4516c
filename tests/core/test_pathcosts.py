"""How many accepted tokens pay for a draft, by hand."""

from __future__ import annotations

import json

import pytest

from selfdraft.core.costs import CostCurve
from selfdraft.core.pathcosts import DraftCosts, PathCosts

STEPS = [DraftCosts(1, 12.0), DraftCosts(1, 12.0, reuse=11.0, reuse_without_bonus=8.0), DraftCosts(4, 20.0)]
COSTS = PathCosts(10.0, 3.0, CostCurve((1, 2), (3.0, 4.0)), STEPS)


@pytest.mark.parametrize(("step", "accepted"), zip(STEPS, (0.5, 0.4, 2.2), strict=True))
def test_a_draft_pays_if_its_step_takes_no_longer_than_plain_forwards_of_its_tokens(step, accepted: float) -> None:
    """A draft and a verification of 12 s take as long as 1.5 plain tokens: the bonus token, and half a drafted one."""
    assert COSTS.break_even(step) == pytest.approx(accepted)


def test_they_can_be_written_as_json() -> None:
    plain = json.loads(json.dumps(COSTS.to_dict()))
    assert plain["forward"] == {"sizes": [1, 2], "seconds": [3.0, 4.0]}
    assert plain["steps"][1]["reuse"] == 11.0 and plain["steps"][0]["reuse"] is None
