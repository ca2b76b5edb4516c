"""Jacobi iteration: each round fixes at least one more token, and carried guesses keep their positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from naming import naming
from selfdraft.core.jacobi import (
    Convergence,
    by_block,
    carried_block,
    is_fixed_point,
    next_iterate,
    sub_block_ends,
)

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


def test_every_iteration_fixes_at_least_one_more_position() -> None:
    for seed in range(20):
        with naming(f"seed {seed}"):
            after = model(seed)
            width = 6
            expected = greedy(after, PREFIX, width)
            block = torch.as_tensor(np.random.default_rng(seed).integers(5, size=width))
            for done in range(1, width + 1):
                block = next_iterate(forward(after, PREFIX, block))
                assert block.tolist()[:done] == expected[:done]
            assert is_fixed_point(block, next_iterate(forward(after, PREFIX, block)))


def test_only_the_greedy_continuation_is_a_fixed_point() -> None:
    for seed in range(20):
        with naming(f"seed {seed}"):
            after = model(seed)
            expected = torch.tensor(greedy(after, PREFIX, 4))
            assert is_fixed_point(expected, next_iterate(forward(after, PREFIX, expected)))
            for position in range(4):
                other = expected.clone()
                other[position] = (other[position] + 1) % 5
                assert not is_fixed_point(other, next_iterate(forward(after, PREFIX, other)))


@pytest.mark.parametrize("accepted", range(4))
def test_carried_guesses_keep_the_positions_that_they_were_predicted_for(accepted: int) -> None:
    # Predictions are labelled by the position after the old root that they speak about: 1, 2, 3, 4.
    carried = carried_block(torch.tensor([1, 2, 3, 4]), accepted)
    new_root = accepted + 1  # the accepted tokens, then the bonus
    assert carried.tolist() == list(range(new_root + 1, 5))


def test_carrying_guesses_over_equals_one_longer_iteration() -> None:
    """Two fused passes equal two iterations over one long block: the second starts where the first stopped."""
    for seed in range(20):
        with naming(f"seed {seed}"):
            after = model(seed)
            block = torch.as_tensor(np.random.default_rng(seed).integers(5, size=6))
            predictions = forward(after, PREFIX, block)
            iterate = next_iterate(predictions)
            accepted = int((block == iterate).long().cumprod(0).sum())
            committed = [*PREFIX, *predictions[: accepted + 1].tolist()]
            assert committed == PREFIX + greedy(after, PREFIX, accepted + 1)
            carried = carried_block(predictions, accepted)
            assert len(carried) == len(block) - accepted
            # All of the next iterate but its committed part is carried, and one guess more than the iterate of width W
            # has.
            assert carried.tolist()[:-1] == iterate.tolist()[accepted + 1 :]


def test_by_block_puts_the_root_before_every_block() -> None:
    assert by_block(torch.arange(7), 2).tolist() == [[0, 1, 2, 3], [0, 4, 5, 6]]
    assert by_block(torch.arange(10).view(5, 2), 2)[1].tolist() == [[0, 1], [6, 7], [8, 9]]
    assert by_block(torch.tensor([5]), 1).tolist() == [[5]]  # an empty block


@pytest.mark.parametrize(
    ("width", "parts", "ends"), [(8, 1, [8]), (8, 2, [4, 8]), (7, 3, [2, 4, 7]), (2, 5, [1, 2]), (0, 2, [])]
)
def test_sub_blocks_have_similar_sizes_and_none_is_empty(width: int, parts: int, ends: list[int]) -> None:
    assert sub_block_ends(width, parts) == ends


def test_convergence_counts_fixed_tokens_early_right_guesses_and_passes() -> None:
    record = Convergence()
    # The text is 1 2 3 4 5 6 7; 1 is the prompt.
    record.passes = [
        (1, 1, [9, 3, 9]),  # nothing right in front, so the target's 2 is certain; the 3 was right before its turn
        (1, 1, [2, 3, 9]),  # of one block refined in place: 2 3 and the target's 4, of which 2 was certain
        (2, 4, [5, 6]),  # all right, and the target's own token after them: three more
        (3, 7, [8, 8]),  # of positions that the text never reached
    ]
    assert record.histograms([1, 2, 3, 4, 5, 6, 7]) == {
        "tokens_fixed_per_pass": [1, 1, 1, 1],
        "right_before_their_turn_per_pass": [3, 1],
        "passes_per_block": [0, 2, 1],
    }


@pytest.mark.parametrize("seed", range(5))
def test_tokens_fixed_sum_to_the_text(seed: int) -> None:
    """With fused passes, every token of the text is fixed by one of them."""
    after, record, text = model(seed), Convergence(), list(PREFIX)
    block = torch.as_tensor(np.random.default_rng(seed).integers(5, size=4))
    while len(text) < 30:
        record.passes.append((0, len(text), block.tolist()))
        predictions = forward(after, text, block)
        accepted = int((block == next_iterate(predictions)).long().cumprod(0).sum())
        text += predictions[: accepted + 1].tolist()
        block = torch.cat([carried_block(predictions, accepted), torch.zeros(accepted, dtype=torch.long)])
    fixed = record.histograms(text)["tokens_fixed_per_pass"]
    assert sum(count * tokens for tokens, count in enumerate(fixed)) == len(text) - len(PREFIX)
    assert sum(fixed) == len(record.passes)
