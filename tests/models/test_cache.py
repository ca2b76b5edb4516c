"""The cache: what was committed stays, bit for bit, whatever is drafted, rejected, moved or grown after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from naming import naming
from random_trees import ancestry, random_tree
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.cache import BLOCK, KVCache
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.paths.sparse import sparse_path

LAYERS, HEADS, SIZE = 3, 2, 4
SIZES = (SIZE, SIZE, SIZE + 2)  # of a head in each layer: the last one cannot share the others' memory


def labelled(labels: Sequence[Sequence[float]], size: int = SIZE) -> Tensor:
    """(B, H, N, D) in which every number of a token is its label, which differs by head and component."""
    base = torch.tensor(labels, dtype=torch.float32)[:, None, :, None]
    return base + torch.arange(HEADS)[:, None, None] * 0.25 + torch.arange(size) * 0.03125


@torch.inference_mode()  # as every forward is: the cache's tensors are made in there
def write(cache: KVCache, rows: Sequence[int], starts: Sequence[int], labels: Sequence[Sequence[float]]) -> Tensor:
    """Write labels into every layer (negated as values, times the layer's number), return layer 0's span of keys."""
    window = cache.window(rows, starts, len(labels[0]))
    new = [labelled(labels, size) * (layer + 1) for layer, size in enumerate(SIZES)]
    spans = [window.update(keys, -keys, layer) for layer, keys in enumerate(new)]
    assert torch.equal(spans[0][0], -spans[0][1])
    return spans[0][0]


def read(cache: KVCache, row: int, slots: slice = slice(None)) -> list[float]:
    """The labels of a row's slots, having checked that all layers, heads, components, keys and values agree on them."""
    labels = cache._keys[0][row, 0, slots, 0]
    for layer, size in enumerate(SIZES):
        expected = labelled([labels.tolist()], size)[0]
        written = labels != 0  # unwritten slots hold plain zeros
        assert torch.equal(cache._keys[layer][row, :, slots][:, written], expected[:, written] * (layer + 1))
        assert torch.equal(cache._values[layer][row, :, slots][:, written], -expected[:, written] * (layer + 1))
    return labels.tolist()


@pytest.mark.parametrize("path", [(), (0, 1, 2), (4,), (1, 3, 5)])
def test_commit_keeps_only_the_accepted_nodes(path: tuple[int, ...]) -> None:
    cache = KVCache(LAYERS, rows=2, slots=0)
    write(cache, [0], [0], [[1, 2, 3]])
    cache.extend(0, 3)
    write(cache, [1], [0], [[91, 92, 93, 94, 95, 96, 97, 98, 99, 100]])
    cache.extend(1, 10)
    write(cache, [0], [3], [[10, 11, 12, 13, 14, 15, 16]])  # the root 10, the nodes 11 to 16
    cache.commit(0, path)
    assert read(cache, 0, slice(0, cache.lengths[0])) == [1, 2, 3, 10, *(11 + node for node in path)]
    # The next forward takes the slots right after, and the other row is unchanged.
    write(cache, [0], [cache.lengths[0]], [[20]])
    cache.commit(0, ())
    assert read(cache, 0, slice(0, cache.lengths[0])) == [1, 2, 3, 10, *(11 + node for node in path), 20]
    assert read(cache, 1, slice(0, 10)) == [91, 92, 93, 94, 95, 96, 97, 98, 99, 100]


def test_commit_gathers_the_accepted_nodes_of_a_random_tree() -> None:
    for seed in range(30):
        tree = random_tree(np.random.default_rng(seed), 20)
        path = ancestry(tree, seed % 20)
        cache = KVCache(LAYERS, rows=1, slots=0)
        write(cache, [0], [0], [[float(i + 1) for i in range(21)]])
        cache.commit(0, path)
        assert read(cache, 0, slice(0, cache.lengths[0])) == [1.0, *(2.0 + node for node in path)]


@pytest.mark.parametrize(
    ("rows", "starts"),
    [([0, 1, 2], [4, 0, 9]), ([0, 1], [5, 5]), ([2, 0], [1, 6]), ([1], [3]), ([0, 2], [3, 3])],
    ids=str,
)
def test_writes_of_a_ragged_batch_change_only_their_slots(rows: list[int], starts: list[int]) -> None:
    cache = KVCache(LAYERS, rows=3, slots=1)
    before = [[100.0 * (row + 1) + slot for slot in range(16)] for row in range(3)]
    write(cache, [0, 1, 2], [0, 0, 0], before)
    labels = [[10.0 * (row + 1) + i for i in range(3)] for row in rows]
    span = write(cache, rows, starts, labels)
    expected = [row.copy() for row in before]
    for row, start, new in zip(rows, starts, labels, strict=True):
        expected[row][start : start + 3] = new
    assert [read(cache, row, slice(0, 16)) for row in range(3)] == expected
    assert [read(cache, row, slice(16, None)) for row in range(3)] == [[0.0] * (cache.slots - 16)] * 3
    # What comes back to attend to: the rows in the order asked for, up to the last slot that any of them wrote.
    assert span[:, 0, :, 0].tolist() == [expected[row][: max(starts) + 3] for row in rows]


def test_growing_the_cache_keeps_its_contents() -> None:
    cache = KVCache(LAYERS, rows=2, slots=0)
    assert cache.slots == 0
    labels = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    write(cache, [0, 1], [0, 0], labels)
    assert cache.slots == BLOCK
    cache.extend(0, 3)
    cache.reserve(BLOCK)  # there is room already
    assert cache.slots == BLOCK
    write(cache, [0], [BLOCK - 1], [[7.0, 8.0]])  # grows by itself, in the middle of a forward
    assert cache.slots == 2 * BLOCK
    cache.reserve(5 * BLOCK + 1)
    assert cache.slots == 6 * BLOCK
    assert read(cache, 0, slice(0, 3)) == labels[0] and read(cache, 1, slice(0, 3)) == labels[1]
    assert read(cache, 0, slice(BLOCK - 1, BLOCK + 1)) == [7.0, 8.0]
    assert cache.lengths == [3, 0]


def test_a_move_copies_committed_tokens_and_changes_no_other_row() -> None:
    cache = KVCache(LAYERS, rows=3, slots=0)
    write(cache, [0, 1, 2], [0, 0, 0], [[1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 14.0], [21.0, 22.0, 23.0, 24.0]])
    for row, length in enumerate((1, 4, 3)):
        cache.extend(row, length)
    cache.move(2, 0)
    assert cache.lengths == [3, 4, 3]
    assert read(cache, 0, slice(0, 4)) == [21.0, 22.0, 23.0, 4.0]
    assert read(cache, 1, slice(0, 4)) == [11.0, 12.0, 13.0, 14.0]
    assert read(cache, 2, slice(0, 4)) == [21.0, 22.0, 23.0, 24.0]
    cache.clear(2)
    assert cache.lengths == [3, 4, 0]


def test_megabytes_counts_what_is_allocated() -> None:
    cache = KVCache(LAYERS, rows=2, slots=1)
    assert cache.megabytes() == 0
    one_layer = 2 * (2 * HEADS * BLOCK * SIZE * 4) / 1e6
    keys = torch.zeros(1, HEADS, 1, SIZE)
    cache.window([0], [0], 1).update(keys, keys, 1)
    assert cache.megabytes() == pytest.approx(LAYERS * one_layer)  # those of equal shapes, of which it is the first
    wider = torch.zeros(1, HEADS, 1, 2 * SIZE)
    cache.window([0], [0], 1).update(wider, wider, 2)
    assert cache.megabytes() == pytest.approx((LAYERS + 2) * one_layer)


# From here on with a model: per-layer rollback.

PROMPT = [5, 17, 3, 60, 42, 9, 33, 8, 71, 2, 14, 27]
SKIPS = {
    "attention": SkipSet.of(4, [1, 2], []),
    "mlp": SkipSet.of(4, [], [0, 2]),
    "layers": SkipSet.of(4, [1, 2], [1, 2]),
    "nothing": SkipSet(),
    "everything": SkipSet.of(4, range(4), range(4)),
}


def committed(target: Target, row: int = 0) -> list[Tensor]:
    """Keys and values of every layer's committed slots, copied."""
    length = target.cache.lengths[row]
    return [t[row, :, :length].clone() for t in (*target.cache._keys, *target.cache._values)]


def same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def step(target: Target, text: list[int], tree: TokenTree, path: tuple[int, ...]) -> None:
    """Verify a tree after `text`, keep the path, write the bonus."""
    logits = target.forward([0], [text[-1]], [tree])[0]
    target.commit(0, path)
    text += [*tree.tokens[list(path)].tolist(), int(logits[path[-1] + 1 if path else 0].argmax())]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_neox"])
def test_a_rejected_sparse_draft_changes_no_layer(family: str) -> None:
    """The sparse path writes some layers' scratch slots and not others'; a rejection must undo all of them alike."""
    target = Target(tiny_model(family))

    def decoded(skip: SkipSet | None) -> tuple[list[int], list[Tensor]]:
        """The text after six steps, with a sparse draft before each if there is a skip set, and what is committed."""
        target.allocate(1, 0)
        target.prefill(0, PROMPT[:-1])
        text = PROMPT.copy()
        sparse = None if skip is None else sparse_path(target, skip)
        for _ in range(6):
            if sparse is not None:
                before = committed(target)
                token = text[-1]
                for offset in range(4):
                    token = int(target.draft_forward(sparse, [0], offset, [token], [TokenTree.empty()])[0].argmax())
                assert same_bits(committed(target), before)
            # Both verify a chain of the same width, since a forward of another width rounds otherwise. It is wrong.
            greedy = int(target.draft_forward(target.full, [0], 0, [text[-1]], [TokenTree.empty()])[0].argmax())
            step(target, text, TokenTree.chain([(greedy + 1) % 96, 1, 2, 3]), ())
        return text, committed(target)

    without, kept = decoded(None)
    for name, skip in SKIPS.items():
        with naming(name):
            text, ours = decoded(skip)
            assert text == without
            assert same_bits(ours, kept)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_neox"])
def test_after_rejections_and_accepted_branches_the_cache_equals_that_of_plain_decoding(family: str) -> None:
    model = tiny_model(family)
    plain, branched = Target(model), Target(model)
    for target in (plain, branched):
        target.allocate(1, 0)
        target.prefill(0, PROMPT[:-1])
    text = PROMPT.copy()
    for _ in range(24):
        step(plain, text, TokenTree.empty(), ())
    again, shape = PROMPT.copy(), 0
    while len(again) < len(text) - 3:
        right = text[len(again) : len(again) + 2]
        wrong = [(token + 1) % 96 for token in right]
        # Wrong, right, below wrong, below right: the path (1, 3) is no prefix of the tree.
        tree = TokenTree(
            torch.tensor([wrong[0], right[0], right[1], right[1]]), torch.tensor([-1, -1, 0, 1]), torch.ones(4).bool()
        )
        step(branched, again, tree, [(1, 3), (), (1,)][shape % 3])
        shape += 1
    assert shape >= 6
    assert again == text[: len(again)]
    for ours, theirs in zip(committed(branched), committed(plain), strict=True):
        torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], rtol=1e-4, atol=1e-4)


def test_the_places_of_keys_are_where_the_layers_memory_is() -> None:
    """In one tensor for all layers, and where a layer has another shape and so tensors of its own."""
    for sizes in ((4, 4, 4), (4, 8, 4)):
        cache = KVCache(3, rows=3, slots=5)
        like = {index: (torch.empty(1, 2, 1, size), torch.empty(1, 2, 1, size)) for index, size in enumerate(sizes)}
        view = cache.window([2, 0], [1, 3], 2)
        places = view.places(like)
        assert places.shape == (2, 3, 2)
        for index, shapes in like.items():
            for side, memory in enumerate(cache._layer(index, *shapes)):
                assert [memory[row].data_ptr() for row in (2, 0)] == places[side, index].tolist()
