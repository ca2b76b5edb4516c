from __future__ import annotations

from itertools import product

import pytest
import torch

from naming import naming
from selfdraft.core.predictions import PredictionTable, best_tokens, weighted


def test_best_tokens_are_those_of_topk() -> None:
    for vocabulary, dtype in product([8, 100, 256 * 3, 256 * 40, 256 * 40 + 1], [torch.float32, torch.bfloat16]):
        with naming(vocabulary, dtype):
            logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(0)).to(dtype)
            tokens, chances = best_tokens(logits, 8)
            tokens = tokens.long()
            values = logits.topk(8, dim=-1).values
            assert torch.equal(logits.gather(1, tokens), values)  # among equals another may be named
            assert torch.equal(chances, values.float().softmax(-1).double())
            assert all(len(set(row)) == 8 for row in tokens.tolist())


def test_best_tokens_within_one_block() -> None:
    logits = torch.zeros(1, 256 * 20)
    logits[0, 300:308] = torch.arange(8, 0, -1).float()
    assert best_tokens(logits, 8)[0].long().tolist() == [list(range(300, 308))]


def test_weights_are_probabilities_among_the_best() -> None:
    logits = torch.full((2, 600), -9.0)
    logits[0, 500], logits[0, 3], logits[1, 7], logits[1, 8] = 2.0, 1.0, 5.0, 5.0
    first, second = weighted(best_tokens(logits, 2))
    share = float(torch.tensor([2.0, 1.0]).softmax(0)[0])
    assert [token for token, _ in first] == [500, 3]
    assert [weight for _, weight in first] == pytest.approx([share, 1 - share])
    assert sorted(second) == [(7, 0.5), (8, 0.5)]


def test_a_table_finds_a_context_and_its_suffixes_longest_first() -> None:
    table = PredictionTable()
    old, new = [(5, 1.0)], [(6, 0.7), (5, 0.3)]
    table.record([(1, 2, 3)], [old])
    assert table.after((1, 2, 3)) == [(3, old), (2, old), (1, old)]
    assert table.after((9, 2, 3)) == [(2, old), (1, old)]
    assert table.after((3,)) == [(1, old)]
    table.record([(9, 3)], [new])
    assert table.after((1, 2, 3)) == [(3, old), (2, old), (1, new)]  # the last one read counts
    assert table.after((8, 8, 8)) == []
