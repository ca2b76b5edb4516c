"""The lookahead window against its paper's positions and mask, and the order in which the pool drops n-grams."""

from __future__ import annotations

import pytest
import torch

from random_trees import ancestry
from selfdraft.core.lookahead import NgramPool, Window, window_parents
from selfdraft.core.tree import TokenTree


def test_the_pool_drops_the_least_recently_seen_ngram_of_a_first_token() -> None:
    pool = NgramPool(2)
    for ngram in ([1, 10], [1, 11], [2, 20], [1, 12]):
        pool.add(ngram)
    assert pool.after(1) == [(12,), (11,)]
    pool.add([1, 11])  # seen again: now the latest
    pool.add([1, 13])
    assert pool.after(1) == [(13,), (11,)]
    assert pool.after(2) == [(20,)] and pool.after(3) == []
    assert len(pool) == 3


def test_the_pool_stores_every_ngram_of_a_text() -> None:
    pool = NgramPool(5)
    pool.add_text([1, 2, 3, 1, 2, 4], 3)
    assert pool.after(1) == [(2, 4), (2, 3)]
    assert pool.after(2) == [(3, 1)] and pool.after(3) == [(1, 2)]
    pool.add_text([7, 8], 3)  # shorter than an n-gram
    assert len(pool) == 4


def test_ngrams_of_this_text_come_before_those_of_earlier_texts() -> None:
    earlier = NgramPool(2)
    earlier.add([1, 2, 3])
    pool, other = NgramPool(2, earlier), NgramPool(2, earlier)
    assert pool.after(1) == [(2, 3)]
    pool.add([1, 4, 5])
    other.add([1, 6, 7])
    assert pool.after(1) == [(4, 5), (6, 7)] and other.after(1) == [(6, 7), (4, 5)]
    assert earlier.after(1) == [(6, 7), (4, 5)]


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (1, 4), (2, 1), (5, 0), (5, 1), (7, 3), (20, 5)])
def test_positions_and_mask_are_those_of_the_paper(width: int, depth: int) -> None:
    """Row 0's column j at +j; row l's column j at +j + l, seeing row 0 up to column j and its own column above."""
    parents = window_parents(width, depth)
    count = width - 1 + depth * width
    tree = TokenTree(torch.arange(count), parents, torch.zeros(count, dtype=torch.bool))
    place = {0: (0, 0)} | {i + 1: (0, i + 1) for i in range(width - 1)}  # node + 1: the root is row 0's column 0
    place |= {width + row * width + column: (row + 1, column) for row in range(depth) for column in range(width)}
    assert sorted(place) == list(range(count + 1))
    node_at = {where: node - 1 for node, where in place.items()}
    for node in range(count):
        row, column = place[node + 1]
        assert int(tree.depths[node]) == column + row
        seen = {(0, c) for c in range(column + 1)} | {(r, column) for r in range(1, row + 1)}
        assert set(ancestry(tree, node)) == {node_at[where] for where in seen - {(0, 0)}}


def predicted(window: Window, start: int) -> torch.Tensor:
    """Logits of a model that predicts its own position everywhere; checks the positions of the window."""
    tree = TokenTree(window.tokens, window.parents, torch.zeros(len(window.tokens), dtype=torch.bool))
    depths = torch.cat([torch.zeros(1, dtype=torch.long), tree.depths])
    return start + depths[window.front + 1] + 1


@pytest.mark.parametrize(("width", "n"), [(1, 2), (1, 5), (4, 2), (4, 3), (7, 5), (20, 7)])
def test_after_n_minus_2_steps_every_column_is_an_ngram(width: int, n: int) -> None:
    window = Window(range(1000, 1000 + width + n - 3), n)
    for step in range(n - 2):
        assert (window.width, len(window.rows)) == (width + n - 2 - step, 1 + step)
        assert window.advance(step, predicted(window, step)) == []
    for step in range(n - 2, 2 * n):
        assert window.width == width and [len(row) for row in window.rows] == [width - 1] + [width] * (n - 2)
        ngrams = window.advance(step, predicted(window, step))
        # Nothing but the very first row 0 was not predicted; it leaves with the first full window.
        first = [step, *range(1000 + n - 2, 1000 + width + n - 3)] if step == n - 2 else range(step, step + width)
        assert ngrams == [[head, *range(step + j + 1, step + j + n)] for j, head in enumerate(first)]


@pytest.mark.parametrize("when", range(6))
def test_a_narrowed_window_keeps_its_first_columns(when: int) -> None:
    """Towards the end of an answer no column may reach past it; the others predict what they predicted before."""
    whole, cut = Window(range(8), 4), Window(range(8), 4)  # seven columns at the end of warming up
    for step in range(16):
        room = 100 if step < when else 9 + when - step
        cut.narrow(room)
        tree = TokenTree(cut.tokens, cut.parents, torch.zeros(len(cut.tokens), dtype=torch.bool))
        assert max(tree.depths.tolist(), default=0) <= max(room, 0)
        full = whole.advance(step, predicted(whole, step))
        left = cut.advance(step, predicted(cut, step)) if cut.rows else []
        assert left == full[: len(left)]
        if full and cut.rows:
            assert len(left) == min(len(full), room - 2 + 1)
    assert not cut.rows and len(cut.tokens) == len(cut.parents) == 0
