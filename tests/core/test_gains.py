"""Plans weighed with numbers worked out by hand."""

from __future__ import annotations

import pytest

from selfdraft.core.costs import CostCurve
from selfdraft.core.gains import Plan, Planner, Rate

FLAT = CostCurve((1, 2), (1.0, 1.0))


def test_a_rate_begins_as_its_prior_learns_and_forgets() -> None:
    rate = Rate(0.5, weight=2.0)
    assert rate() == 0.5
    rate.learn(accepted=2, offered=4)  # two right, one wrong; the fourth says nothing
    assert rate() == pytest.approx((2 + 1) / (3 + 2))
    rate.learn(accepted=3, offered=3)
    assert rate() == pytest.approx((5 + 1) / (6 + 2))
    rate.fade(0.0)
    assert rate() == 0.5


def test_it_is_never_sure() -> None:
    rate = Rate(0.5)
    rate.learn(10_000, 10_000)
    assert rate() == 0.99


def test_looking_up_is_free_where_verifying_is() -> None:
    plan = Planner(FLAT, FLAT, looked_up=4, sparse_tokens=2).best(rate=0.5, found=3, sparse_rate=0.1, room=100)
    assert plan == Plan(3, 0, pytest.approx(1 + 0.5 + 0.25 + 0.125))


def test_the_sparse_model_drafts_where_lookups_are_silent_and_it_is_cheap_and_right() -> None:
    cheap = CostCurve((1, 2), (0.1, 0.1))
    plan = Planner(FLAT, cheap, 4, 2).best(rate=0.0, found=0, sparse_rate=0.9, room=100)
    assert plan == Plan(0, 2, pytest.approx((1 + 0.9 + 0.81) / 1.2))


def test_it_goes_on_behind_what_was_looked_up() -> None:
    cheap = CostCurve((1, 2), (0.1, 0.1))
    plan = Planner(FLAT, cheap, 2, 2).best(rate=0.9, found=2, sparse_rate=0.9, room=100)
    tokens = 1 + 0.9 + 0.9**2 + 0.9**2 * (0.9 + 0.9**2)
    assert plan == Plan(2, 2, pytest.approx(tokens / 1.2))


def test_where_everything_costs_more_than_it_gives_the_best_plan_says_so() -> None:
    steep = CostCurve((1, 2), (1.0, 2.0))
    plan = Planner(steep, FLAT, 4, 2).best(rate=0.5, found=4, sparse_rate=0.5, room=100)
    assert plan.speedup == pytest.approx(1.5 / 2)
    assert plan.looked_up + plan.sparse == 1


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_no_plan_is_longer_than_there_is_room(room: int) -> None:
    plan = Planner(FLAT, CostCurve((1, 2), (0.01, 0.01)), 4, 4).best(0.9, 4, 0.9, room)
    assert plan.looked_up + plan.sparse == room


def test_with_nothing_found_and_no_sparse_tokens_there_is_no_plan() -> None:
    assert Planner(FLAT, FLAT, 4, 0).best(0.0, 0, 0.9, 100) == Plan(0, 0, 1.0)
