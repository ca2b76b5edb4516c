"""The certificate: where two outputs differ first, and whether rounding explains it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from selfdraft.core.certificate import Certificate, first_divergence, judge, largest, margin_control, recheck


@pytest.mark.parametrize(
    ("output", "reference", "index"),
    [
        ([], [], None),
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 9, 3], 1),
        ([9, 2], [1, 2], 0),
        ([1, 2], [1, 2, 3], 2),  # a missing token differs
        ([1, 2, 3], [1, 2], 2),
        ([], [1], 0),
    ],
)
def test_first_divergence_is_the_first_token_that_differs(
    output: Sequence[int], reference: Sequence[int], index
) -> None:
    assert first_divergence(output, reference) == index


@pytest.mark.parametrize(
    ("margin", "control", "verdict"),
    [
        (0.0, 0.0, "tie"),
        (0.1, 0.1, "tie"),
        (0.1000001, 0.1, "mismatch"),
        (1e-9, 0.0, "mismatch"),
        (math.nan, 0.1, "mismatch"),  # what cannot be compared is not excused
        (0.1, math.nan, "mismatch"),
    ],
)
def test_a_divergence_is_a_tie_only_within_the_control(margin: float, control: float, verdict: str) -> None:
    certificate = judge(3, margin, control, 1.0)
    assert (certificate.verdict, certificate.first_divergence) == (verdict, 3)


@pytest.mark.parametrize(("margin", "control"), [(3.0, 5.9), (0.0, 1.1), (0.0, math.inf)])
def test_a_control_larger_than_rounding_errors_allows_no_tie(margin: float, control: float) -> None:
    certificate = judge(3, margin, control, 1.0)
    assert (certificate.verdict, certificate.reason) == ("mismatch", "control")
    checked = recheck(judge(3, 0.1, 0.25, 1.0), margin, control, 1.0)
    assert (checked.verdict, checked.reason) == ("mismatch", "control")


@pytest.mark.parametrize("changes", [[math.nan, 1.0], [1.0, math.nan], [math.inf, math.nan]])
def test_a_change_of_nan_counts_as_the_largest(changes: list[float]) -> None:
    assert math.isnan(largest(changes))
    assert largest([0.5, 2.0, 1.0]) == 2.0


def test_a_certificate_is_written_with_its_numbers() -> None:
    assert judge(3, 0.5, 0.25, 1.0).to_dict() == {
        "verdict": "mismatch",
        "first_divergence": 3,
        "margin": 0.5,
        "control": 0.25,
        "float32": None,
        "reason": "token",
        "distance": None,
        "ceiling": None,
    }
    assert Certificate("exact").to_dict() == {
        "verdict": "exact",
        "first_divergence": None,
        "margin": None,
        "control": None,
        "float32": None,
        "reason": None,
        "distance": None,
        "ceiling": None,
    }


def test_the_control_is_the_largest_change_of_the_leading_margin() -> None:
    single = torch.tensor([[5.0, 3.0, 0.0], [0.0, 1.0, 4.0]])  # margins 2 and 3
    block = torch.tensor([[5.0, 3.5, 0.0], [0.0, 1.5, 4.25]])  # margins 1.5 and 2.75
    assert margin_control(single, block) == pytest.approx(0.5)
    assert margin_control(single, single) == 0.0


def test_the_margin_is_measured_between_the_same_two_tokens() -> None:
    # In the block another token leads, and the two of `single` have changed places: from +1 to -2 is a change of 3.
    single = torch.tensor([[4.0, 3.0, 0.0]])
    block = torch.tensor([[2.0, 4.0, 9.0]])
    assert margin_control(single, block) == pytest.approx(3.0)


def test_a_common_shift_and_other_tokens_do_not_change_the_margin() -> None:
    single = torch.tensor([[5.0, 3.0, 0.0, -1.0]])
    block = torch.tensor([[6.0, 4.0, -7.0, 2.0]])
    assert margin_control(single, block) == 0.0


def test_half_precision_logits_are_compared_in_float32() -> None:
    # 256 - 1.5 is no bfloat16: subtracted there, the change would come out as 0 or 1.
    single = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)
    block = torch.tensor([[256.0, 1.5]], dtype=torch.bfloat16)
    assert margin_control(single, block) == pytest.approx(0.5)


def test_a_tie_with_a_float32_margin_above_rounding_errors_is_a_mismatch() -> None:
    tie = judge(3, 0.1, 0.25, 1.0)
    close, far, reversed_ = (recheck(tie, margin, 0.3, 1.0) for margin in (0.2, 0.4, -0.4))
    assert [c.verdict for c in (close, far, reversed_)] == ["tie", "mismatch", "mismatch"]
    assert [c.float32.prefers for c in (close, far, reversed_)] == ["baseline", "baseline", "drafter"]
    assert close.to_dict()["float32"] == {"margin": 0.2, "control": 0.3, "prefers": "baseline"}
    assert (close.margin, close.control, close.first_divergence) == (0.1, 0.25, 3)


def test_a_token_banned_in_both_forwards_changes_no_margin() -> None:
    one = torch.tensor([[1.0, float("-inf"), float("-inf")]])
    assert margin_control(one, one + 0.5) == 0.0


def test_a_forward_with_nan_gives_no_control() -> None:
    one = torch.tensor([[3.0, 1.0, 0.0]])
    assert math.isnan(margin_control(one, one * math.nan))
