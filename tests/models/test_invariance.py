"""Shape invariance: which forwards are padded so that a token's logits always have the same bits."""

from __future__ import annotations

import pytest
import torch

from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.block import Block
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.paths.sparse import sparse_path
from selfdraft.models.reference.invariance import KEY_BLOCK, ROW_BLOCK

Shape = tuple[int, int]  # tokens of a row, and what the number of keys is rounded up to
PADDED, PLAIN = (ROW_BLOCK, KEY_BLOCK), (1, 1)


def test_verifications_are_padded_and_drafts_only_if_their_states_are_reused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, seen = Target(tiny_model("llama")), []
    target.row_block, target.key_block = ROW_BLOCK, KEY_BLOCK
    drive = Path.drive

    def noting(path: Path, runner: Target, block: Block, *args: object, **more: object):
        seen.append((block.tokens.shape[1], block.key_block))
        return drive(path, runner, block, *args, **more)

    monkeypatch.setattr(Path, "drive", noting)
    target.allocate(1, 64)
    target.prefill(0, [5, 17, 3])

    def shapes_of(*, keep: list | None) -> set[Shape]:
        seen.clear()
        target.draft_forward(sparse_path(target, SkipSet.from_layer(4, 2)), [0], 0, [9], [TokenTree.empty()], keep=keep)
        return set(seen)

    assert shapes_of(keep=None) == {PLAIN}
    assert shapes_of(keep=[[]]) == {PADDED}
    seen.clear()
    target.forward([0], [9], [TokenTree.empty()])
    assert set(seen) == {PADDED}
    seen.clear()
    target.prefill(0, [1, 2, 4])
    assert {keys for _, keys in seen} == {KEY_BLOCK}


def test_no_draft_crosses_into_the_next_block_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token of a verification is given as many keys as it would be given by itself."""
    target, spans = Target(tiny_model("llama")), []
    target.row_block, target.key_block, target.widest_draft = ROW_BLOCK, KEY_BLOCK, 9
    window = target.cache.window

    def noting(*args: object, **more: object):
        view = window(*args, **more)
        spans.append(view.span)
        return view

    target.allocate(1, 2 * KEY_BLOCK)
    text = torch.randint(60, (KEY_BLOCK + 20,), generator=torch.Generator().manual_seed(1)).tolist()
    monkeypatch.setattr(target.cache, "window", noting)
    for length in range(KEY_BLOCK - 14, KEY_BLOCK + 4):
        target.cache.clear(0)
        target.prefill(0, text[:length])
        drafted = target.longest_draft(0)
        assert drafted == (9 if length + ROW_BLOCK > KEY_BLOCK else min(9, KEY_BLOCK - ROW_BLOCK - length))
        single = -(-(length + drafted + ROW_BLOCK) // KEY_BLOCK) * KEY_BLOCK  # the keys of the last token by itself
        spans.clear()
        target.forward([0], [text[length]], [TokenTree.chain(text[length + 1 : length + 1 + drafted])])
        assert spans == [single] and single == -(-(length + ROW_BLOCK) // KEY_BLOCK) * KEY_BLOCK
