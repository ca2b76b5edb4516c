"""Row sums that detect changes of a matrix after it was copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfdraft.models.forward.currency import row_sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [8, 3, 1])
def test_every_changed_number_changes_only_the_sum_of_its_row(dtype: torch.dtype, columns: int) -> None:
    """Also where a row is no whole number of integers, and in a slice, which begins anywhere in memory."""
    whole = torch.randn(6, columns + 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    for matrix in (
        whole[:, :columns].contiguous(),
        whole[:, 1:],
        whole.flatten()[1 : 1 + 5 * columns].view(5, columns),
    ):
        before = row_sums(matrix)
        for row in range(len(matrix)):
            for column in range(columns):
                old = matrix[row, column].clone()
                matrix[row, column] = torch.nextafter(old, old.new_tensor(9))
                assert (row_sums(matrix) != before).tolist() == [r == row for r in range(len(matrix))]
                matrix[row, column] = -old
                assert (row_sums(matrix) != before).tolist() == [r == row for r in range(len(matrix))]
                matrix[row, column] = old
        assert np.array_equal(row_sums(matrix), before)


def test_a_bias_has_one_sum() -> None:
    bias = torch.zeros(5)
    before = row_sums(bias)
    bias[4] = 1
    assert len(before) == 1 and row_sums(bias) != before
