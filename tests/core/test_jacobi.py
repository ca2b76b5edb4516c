"""Jacobi iteration: each round fixes at least one more token, and what is left over stands in its right place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from selfdraft.core.jacobi import carried_block, is_fixed_point, next_iterate

PREFIX = [3, 1, 4]


def model(seed: int, vocab: int = 5):
    """A next token that depends on all tokens before it."""

    def after(text: Sequence[int]) -> int:
        return int(np.random.default_rng([seed, len(text), *text]).integers(vocab))

    return after


def forward(after, prefix: Sequence[int], block: torch.Tensor) -> torch.Tensor:
    """(W + 1,) argmax after the root and after each block token, as one target forward gives them."""
    text = [*prefix, *block.tolist()]
    return torch.tensor([after(text[: len(prefix) + i]) for i in range(len(block) + 1)])


def greedy(after, prefix: Sequence[int], length: int) -> list[int]:
    text = list(prefix)
    for _ in range(length):
        text.append(after(text))
    return text[len(prefix) :]


@pytest.mark.parametrize("seed", range(20))
def test_every_iteration_fixes_one_more_position_whatever_the_block_began_as(seed: int) -> None:
    after = model(seed)
    width = 6
    expected = greedy(after, PREFIX, width)
    block = torch.as_tensor(np.random.default_rng(seed).integers(5, size=width))
    for done in range(1, width + 1):
        block = next_iterate(forward(after, PREFIX, block))
        assert block.tolist()[:done] == expected[:done]
    assert is_fixed_point(block, next_iterate(forward(after, PREFIX, block)))


@pytest.mark.parametrize("seed", range(20))
def test_only_the_greedy_continuation_is_a_fixed_point(seed: int) -> None:
    after = model(seed)
    expected = torch.tensor(greedy(after, PREFIX, 4))
    assert is_fixed_point(expected, next_iterate(forward(after, PREFIX, expected)))
    for position in range(4):
        other = expected.clone()
        other[position] = (other[position] + 1) % 5
        assert not is_fixed_point(other, next_iterate(forward(after, PREFIX, other)))


@pytest.mark.parametrize("accepted", range(4))
def test_carried_guesses_stand_where_the_same_pass_predicted_them(accepted: int) -> None:
    # Predictions are labelled by the position behind the old root that they speak about: 1, 2, 3, 4.
    carried = carried_block(torch.tensor([1, 2, 3, 4]), accepted)
    new_root = accepted + 1  # the accepted tokens, then the bonus
    assert carried.tolist() == list(range(new_root + 1, 5))


@pytest.mark.parametrize("seed", range(20))
def test_carrying_on_is_the_same_iteration(seed: int) -> None:
    """Two fused passes equal two iterations over one long block: the second starts where the first stopped."""
    after = model(seed)
    block = torch.as_tensor(np.random.default_rng(seed).integers(5, size=6))
    predictions = forward(after, PREFIX, block)
    iterate = next_iterate(predictions)
    accepted = int((block == iterate).long().cumprod(0).sum())
    committed = [*PREFIX, *predictions[: accepted + 1].tolist()]
    assert committed == PREFIX + greedy(after, PREFIX, accepted + 1)
    carried = carried_block(predictions, accepted)
    assert len(carried) == len(block) - accepted
    # All of the next iterate but its committed part is carried, and one guess that the iterate of width W lacks.
    assert carried.tolist()[:-1] == iterate.tolist()[accepted + 1 :]
