"""The final hidden state of the last committed token, for paths that use it as a feature."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from begun import CLOSE
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from selfdraft.models.paths.sparse import sparse_path

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
# Two branches: the second one, 7 then 8, is no prefix of the tree.
TREE = TokenTree(torch.tensor([5, 7, 6, 8]), torch.tensor([-1, -1, 0, 1]), torch.ones(4, dtype=torch.bool))


@torch.inference_mode()
def final_state(model: PreTrainedModel, text: list[int]) -> Tensor:
    """(C,) of the text's last token, after the final norm, from the stock model."""
    return model.base_model(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_feature_is_the_final_state_of_the_last_committed_token(family: str) -> None:
    model = tiny_model(family)
    target = Target(model)
    target.allocate(2, 0)
    target.prefill(0, PROMPT[:-1])
    target.prefill(1, PROMPT[:3])
    torch.testing.assert_close(target.cache.finals[0], final_state(model, PROMPT[:-1]), **CLOSE)
    texts = [PROMPT[:-1], PROMPT[:3]]
    for paths in ([(1, 3), ()], [(), (0,)], [(0, 2), (1, 3)]):
        roots = [PROMPT[-1], 2]
        target.forward([0, 1], roots, [TREE, TREE])
        for row, (root, path) in enumerate(zip(roots, paths, strict=True)):
            target.commit(row, path)
            texts[row] = [*texts[row], root, *TREE.tokens[list(path)].tolist()]
            torch.testing.assert_close(target.cache.finals[row], final_state(model, texts[row]), **CLOSE)


def test_the_feature_moves_and_is_cleared_with_its_row() -> None:
    target = Target(tiny_model())
    target.allocate(2, 0)
    cache = target.cache
    assert cache.finals == [None, None]
    target.prefill(0, PROMPT)
    kept = cache.finals[0]
    cache.move(0, 1)
    cache.rewind(1, len(PROMPT))  # nothing is taken back
    assert cache.finals[1] is kept
    cache.rewind(1, 2)
    cache.clear(0)
    assert cache.finals == [None, None]


def featured(target: Target) -> tuple[Path, Path]:
    """A path with a feature, and the same without."""
    plain = sparse_path(target, SkipSet.from_layer(len(target.full.layers), 2))
    width = target.model.config.hidden_size
    matrix = nn.Linear(width, width, bias=False, dtype=target.dtype)
    nn.init.normal_(matrix.weight, generator=torch.Generator().manual_seed(0))
    skip = SkipSet.from_layer(len(target.full.layers), 2)
    return sparse_path(target, skip, feature=matrix.requires_grad_(False)), plain


@pytest.mark.parametrize("kept", [False, True])
def test_the_feature_is_added_after_the_leading_layers_to_the_first_token_of_a_draft_only(kept: bool) -> None:
    target = Target(tiny_model())
    target.allocate(2, 0)
    target.prefill(0, PROMPT[:4])  # of row 1 nothing is known
    path, plain = featured(target)
    chain, keep = TokenTree.chain([7, 8]), [[], []]
    logits = target.draft_forward(path, [0, 1], 0, [5, 5], [chain, chain], keep=keep if kept else None)
    states: list[list[Tensor]] = [[], []]
    without = target.draft_forward(plain, [0, 1], 0, [5, 5], [chain, chain], keep=states)
    assert torch.equal(logits[1], without[1])
    assert not torch.allclose(logits[0][0], without[0][0], atol=1e-3)
    # The exit is the path's end here: its head reads what the exit leaves and the feature, normed.
    exit_states = states[0][0].clone()
    exit_states[0] += path.feature.weight @ target.cache.finals[0]
    expected = target.head(target.norm(exit_states))
    torch.testing.assert_close(logits[0], expected, **CLOSE)
    if kept:  # what verification takes over is the target's own
        assert all(torch.equal(ours[0], theirs[0]) for ours, theirs in zip(keep, states, strict=True))
    again = [target.draft_forward(p, [0], 1, [7], [TokenTree.empty()])[0] for p in (path, plain)]
    assert torch.equal(*again)
