"""From scores to tokens."""

from __future__ import annotations

import pytest
import torch

from selfdraft.core.sampling import most_likely


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_most_likely_token_is_the_first_of_equal_ones(dtype: torch.dtype) -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [-1.0, -2.0, -1.0], [float("-inf"), 0.0, float("-inf")]], dtype=dtype)
    assert most_likely(scores).tolist() == [1, 0, 1]
    assert most_likely(scores).dtype == torch.int64
