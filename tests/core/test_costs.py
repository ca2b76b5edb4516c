import pytest

from selfdraft.core.costs import CostCurve

CURVE = CostCurve((1, 4, 16), (10.0, 13.0, 37.0))


@pytest.mark.parametrize(("size", "seconds"), [(1, 10.0), (2, 11.0), (4, 13.0), (10, 25.0), (16, 37.0), (20, 45.0)])
def test_a_curve_passes_through_its_points_and_is_linear_between(size: float, seconds: float) -> None:
    assert CURVE(size) == pytest.approx(seconds)


def test_relative_costs_are_in_forwards_of_one_token() -> None:
    assert CURVE.relative(16) == pytest.approx(3.7)


def test_costs_never_fall_with_more_tokens_despite_noise() -> None:
    assert CostCurve.measured([1, 2, 3], [5.0, 4.0, 6.0]).seconds == (5.0, 5.0, 6.0)


@pytest.mark.parametrize(("sizes", "seconds"), [((1,), (1.0,)), ((2, 1), (1.0, 2.0)), ((1, 2), (2.0, 1.0))])
def test_an_invalid_curve_is_refused(sizes: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cost curve"):
        CostCurve(sizes, seconds)


def test_a_row_of_a_batch_pays_its_share_of_all_tokens() -> None:
    curve = CostCurve((1, 8, 16), (1.0, 2.0, 4.0))
    assert curve.shared_by(1) is curve
    assert [curve.shared_by(4)(size) for size in (1, 2, 4, 5)] == [curve(4 * size) / 4 for size in (1, 2, 4, 5)]
