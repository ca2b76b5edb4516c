"""Drafting with a selection of the keys, and attention that records its scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from begun import CLOSE, LONG, SHORT, begin
from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.paths.selection import Selection, scoring, selecting
from selfdraft.models.paths.sparse import sparse_path


def test_selecting_all_keys_changes_nothing(target: Target) -> None:
    paths = sparse_path(target, SkipSet()), sparse_path(target, SkipSet.of(4, [1], [2]))
    for prompt in (LONG, SHORT):
        begin(target, prompt)
        keys = Selection(4, 1)
        keys.choose(0, target.cache, torch.arange(len(prompt) - 1))
        for path in paths:
            for offset, token in enumerate([prompt[-1], 4, 9]):
                some = selecting(path, target, keys)
                ours = target.draft_forward(some, [0], offset, [token], [TokenTree.chain([8])])[0]
                plain = target.draft_forward(path, [0], offset, [token], [TokenTree.chain([8])])[0]
                with naming(f"{len(prompt)} keys", f"offset {offset}"):
                    torch.testing.assert_close(ours, plain, **CLOSE)


def test_only_selected_keys_are_seen_at_their_own_positions(model: PreTrainedModel, target: Target) -> None:
    """Against the stock model with a mask over the whole prefix."""
    chosen = torch.tensor([0, 1, 9, 14, 15, 16, 17, 18])
    begin(target, LONG)
    keys = Selection(4, 1)
    keys.choose(0, target.cache, chosen)
    path, tokens = selecting(sparse_path(target, SkipSet()), target, keys), [LONG[-1], 4, 9, 30]
    ours = [
        target.draft_forward(path, [0], offset, [token], [TokenTree.empty()])[0][0]
        for offset, token in enumerate(tokens)
    ]
    length, whole = len(LONG) - 1, len(LONG) - 1 + len(tokens)
    seen = torch.ones(whole, whole, dtype=torch.bool).tril()
    others = torch.ones(length, dtype=torch.bool).index_fill_(0, chosen, False)
    seen[length:, :length] &= ~others
    near = torch.arange(whole)[:, None] - torch.arange(whole) < (target.anatomy.window or whole)
    kinds = {"full_attention": _additive(seen), "sliding_attention": _additive(seen & near)}
    mask = kinds if model.config.model_type.startswith("gemma") else kinds[target.anatomy.layer_types[0]]
    with torch.inference_mode():
        positions = torch.arange(whole)[None]
        text = torch.tensor([[*LONG[:-1], *tokens]])
        expected = model(text, attention_mask=mask, position_ids=positions, use_cache=False).logits[0, length:]
    torch.testing.assert_close(torch.stack(ours), expected, **CLOSE)


def _additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)[None, None]


def test_every_row_of_a_batch_has_its_own_selection(target: Target) -> None:
    prompts = [LONG, SHORT, LONG[:9]]
    begin(target, *prompts)
    keys, alone = Selection(4, 3), Selection(4, 3)
    choices = [torch.tensor([0, 1, 15, 16, 17, 18]), torch.arange(3), torch.tensor([0, 5, 6, 7])]
    for row, choice in enumerate(choices):
        keys.choose(row, target.cache, choice)
    path = sparse_path(target, SkipSet.of(4, [1], []))
    roots = [prompt[-1] for prompt in prompts]
    together = target.draft_forward(selecting(path, target, keys), [0, 1, 2], 0, roots, [TokenTree.empty()] * 3)
    for row, choice in enumerate(choices):
        alone.choose(row, target.cache, choice)
        own = selecting(path, target, alone)
        by_itself = target.draft_forward(own, [row], 0, [roots[row]], [TokenTree.empty()])[0]
        torch.testing.assert_close(together[row], by_itself, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])
def test_scores_are_the_attention_of_the_last_query(family: str) -> None:
    model = tiny_model(family, attn_implementation="eager")
    target = Target(model)
    begin(target, LONG)
    path, scores = scoring(target, sparse_path(target, SkipSet()))
    target.draft_forward(path, [0], 0, [LONG[-1]], [TokenTree.empty()])
    with torch.inference_mode():
        weights = model(torch.tensor([LONG]), output_attentions=True, use_cache=False).attentions
    expected = sum(w[0, :, -1].sum(0) for w in weights)
    torch.testing.assert_close(scores.sums[0], expected, rtol=1e-3, atol=1e-3)
    assert scores.best(5, 2, 19).tolist() == sorted((2 + expected[2:19].topk(5).indices).tolist())


def test_scores_in_a_family_with_custom_attention_are_refused() -> None:
    target = Target(tiny_model("gemma2"))
    with pytest.raises(UserError, match=r"^drafter\.path\.top_k: .*'gemma2'"):
        scoring(target, sparse_path(target, SkipSet()))
