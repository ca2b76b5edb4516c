"""Skip sets: the number and choice of skipped sublayers by sparsity, and refused values."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet

SPARSITIES = [0.0, 0.1, 0.2, 0.25, 0.45, 0.5, 0.75, 0.99]


def sublayers(skip: SkipSet) -> list[int]:
    """Skipped sublayers in the order in which a forward meets them: attention 2 i, MLP 2 i + 1."""
    return sorted([2 * i for i in skip.attention] + [2 * i + 1 for i in skip.mlp])


def test_the_count_is_that_of_swift_and_first_and_last_layer_are_kept() -> None:
    for layers, sparsity in product([1, 2, 3, 4, 12, 30, 31], SPARSITIES):
        with naming(layers, sparsity):
            skip = SkipSet.spread(layers, sparsity)
            assert len(skip) == len(sublayers(skip)) == int(2 * max(layers - 2, 0) * sparsity)
            assert not {0, layers - 1} & (skip.attention | skip.mlp)


def test_skipped_sublayers_are_evenly_spaced_and_of_both_kinds() -> None:
    """With only one kind, a sweep over the sparsity would compare two different methods."""
    for sparsity in [s for s in SPARSITIES if s]:
        with naming(sparsity):
            skip = SkipSet.spread(30, sparsity)
            assert len(skip.attention) - len(skip.mlp) in (0, 1)
            for layers in (skip.attention, skip.mlp):
                gaps = [b - a for a, b in pairwise(sorted(layers))]
                assert not gaps or max(gaps) - min(gaps) <= 1


def test_whole_layers_are_those_without_either_sublayer() -> None:
    skip = SkipSet.of(6, attention=[1, 2, 4], mlp=[2, 3, 4])
    assert skip.whole_layers() == {2, 4}
    assert len(skip) == 6


@pytest.mark.parametrize(
    ("attention", "mlp", "message"),
    [
        ([4], [], r"drafter\.skip_attention=\[4\]: this model's layers are 0 to 3"),
        ([], [99, 2, -1], r"drafter\.skip_mlp=\[-1, 99\]: this model's layers are 0 to 3"),
    ],
)
def test_a_layer_that_the_model_lacks_is_refused_by_option_and_range(attention, mlp, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SkipSet.of(4, attention, mlp)


def test_a_layer_named_twice_is_skipped_once() -> None:
    assert SkipSet.of(4, [1, 1], []) == SkipSet(frozenset({1}), frozenset())
