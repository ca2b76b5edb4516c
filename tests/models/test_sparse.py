"""Sparse paths beyond skipped sublayers: reuse of what drafting computed, vocabulary, replays, chosen layers."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from begun import CLOSE, LONG, SHORT, begin
from naming import naming
from random_trees import random_tree
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.block import Block
from selfdraft.models.forward.path import Path, Reuse
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import WINDOW, tiny_model
from selfdraft.models.paths.dynamic import exit_tokens, most_similar_skips
from selfdraft.models.paths.sparse import sparse_path
from selfdraft.models.reference.teacher_forced import teacher_forced


def draft(target: Target, path: Path, prompts: list[list[int]], lengths: list[int]) -> tuple[list[list[int]], list]:
    """Chains drafted token by token, row b for ``lengths[b]`` forwards, and what can be reused of each."""
    tokens = [[prompt[-1]] for prompt in prompts]
    states: list[list[Tensor]] = [[] for _ in prompts]
    for offset in range(max(lengths)):
        rows = [row for row, length in enumerate(lengths) if offset < length]
        roots, keep = [tokens[row][-1] for row in rows], [states[row] for row in rows]
        logits = target.draft_forward(path, rows, offset, roots, [TokenTree.empty()] * len(rows), keep=keep)
        for row, x in zip(rows, logits, strict=True):
            tokens[row].append(int(x[0].argmax()))
    return tokens, [Reuse(path.leading, torch.cat(s)) for s in states]


REUSED = {
    "exit": SkipSet.from_layer(4, 2),
    "late exit": SkipSet.from_layer(4, 3),
    "late sublayers": SkipSet.of(4, [2], [3]),  # what is skipped comes late, but the path continues after it
}


def test_verification_with_reused_states_equals_the_plain_one(target: Target) -> None:
    """Logits, and every layer's keys and values, in a ragged batch; drafts longer than a window among them."""
    prompts, lengths = [LONG, SHORT, LONG[:9]], [5, WINDOW + 2, 2]
    roots = [prompt[-1] for prompt in prompts]
    for name, skip in REUSED.items():
        path = sparse_path(target, skip)
        assert path.leading == min(skip.attention | skip.mlp)
        begin(target, *prompts)
        chains, reuse = draft(target, path, prompts, lengths)
        for bonus in (True, False):
            trees = [TokenTree.chain(chain[1:] if bonus else chain[1:-1]) for chain in chains]
            ours = target.forward([0, 1, 2], roots, trees, reuse=reuse)
            keys = [k.clone() for k in target.cache._keys]
            begin(target, *prompts)
            plain = target.forward([0, 1, 2], roots, trees)
            with naming(name, "bonus" if bonus else "no bonus"):
                for row, (a, b) in enumerate(zip(ours, plain, strict=True)):
                    torch.testing.assert_close(a, b, **CLOSE)
                    assert torch.equal(a.argmax(-1), b.argmax(-1))
                    end = len(prompts[row]) + len(trees[row])
                    for mine, theirs in zip(keys, target.cache._keys, strict=True):
                        torch.testing.assert_close(mine[row, :, :end], theirs[row, :, :end], **CLOSE)


def test_rows_with_different_exit_layers_are_verified_without_reuse(target: Target) -> None:
    prompts, roots = [LONG, SHORT], [LONG[-1], SHORT[-1]]
    begin(target, *prompts)
    reuse, trees = [], []
    for row, exit_layer in enumerate((1, 3)):
        path, states = sparse_path(target, SkipSet.from_layer(4, exit_layer)), []
        for offset, token in enumerate([roots[row], 4, 9]):
            target.draft_forward(path, [row], offset, [token], [TokenTree.empty()], keep=[states])
        reuse.append(Reuse(path.leading, torch.cat(states)))
        trees.append(TokenTree.chain([4, 9, 30]))
    ours = target.forward([0, 1], roots, trees, reuse=reuse)
    for mine, plain in zip(ours, target.forward([0, 1], roots, trees), strict=True):
        torch.testing.assert_close(mine, plain, **CLOSE)


def test_siblings_of_a_reused_chain_get_the_right_logits(target: Target) -> None:
    path = sparse_path(target, REUSED["exit"])
    begin(target, LONG)
    (chain,), reuse = draft(target, path, [LONG], [3])
    tokens, parents = torch.tensor([*chain[1:], 40, 41, 42]), torch.tensor([-1, 0, 1, -1, 0, 1])
    tree = TokenTree(tokens, parents, torch.ones(6, dtype=torch.bool))
    ours = target.forward([0], [LONG[-1]], [tree], reuse=reuse)[0]
    torch.testing.assert_close(ours, target.forward([0], [LONG[-1]], [tree])[0], **CLOSE)


@contextmanager
def layer_calls(target: Target):
    """Tokens that each full layer was called with, per call."""
    calls: list[list[int]] = [[] for _ in target.full.layers]
    hooks = [
        layer.register_forward_hook(lambda m, inputs, out, i=i: calls[i].append(inputs[0].shape[1]))
        for i, layer in enumerate(target.full.layers)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def test_only_missing_states_are_computed() -> None:
    target = Target(tiny_model("llama"))
    path = sparse_path(target, REUSED["exit"])
    begin(target, LONG)
    (chain,), reuse = draft(target, path, [LONG], [4])
    with layer_calls(target) as calls:
        target.forward([0], [LONG[-1]], [TokenTree.chain(chain[1:-1])], reuse=reuse)
        assert calls == [[], [], [4], [4]]
        target.forward([0], [LONG[-1]], [TokenTree.chain(chain[1:])], reuse=reuse)
        assert calls == [[1], [1], [4, 5], [4, 5]]
        target.forward([0], [LONG[-1]], [TokenTree.chain(chain[1:])], reuse=[None])
        assert calls == [[1, 5], [1, 5], [4, 5, 5], [4, 5, 5]]


def test_states_are_kept_before_and_after_every_layer(model: PreTrainedModel, target: Target) -> None:
    begin(target, LONG[:1])
    keep: list[list[Tensor]] = [[]]
    target.forward([0], LONG[:1], [TokenTree.chain(LONG[1:])], keep=keep)
    with torch.inference_mode():
        stock = model(torch.tensor([LONG]), output_hidden_states=True, use_cache=False).hidden_states
    (ours,) = keep[0]
    assert ours.shape == (5, len(LONG), stock[0].shape[-1])
    for layer in range(4):  # the stock model's last one has passed the final norm
        torch.testing.assert_close(ours[layer], stock[layer][0], **CLOSE)


# Vocabulary.


def test_a_reduced_vocabulary_gives_the_same_logits_and_minus_infinity_elsewhere(target: Target) -> None:
    ids = [3, 50, 4, 95, 0, 3]
    begin(target, LONG)
    skip = SkipSet.of(4, [1], [])
    tree = random_tree(np.random.default_rng(0), 6)
    whole = target.draft_forward(sparse_path(target, skip), [0], 0, [1], [tree])[0]
    path = sparse_path(target, skip, vocabulary=ids)
    part = target.draft_forward(path, [0], 0, [1], [tree])[0]
    assert part.shape == whole.shape
    kept = sorted(set(ids))
    torch.testing.assert_close(part[:, kept], whole[:, kept], **CLOSE)
    others = [i for i in range(96) if i not in kept]
    assert bool((part[:, others] == float("-inf")).all())
    assert path.head.weight.shape[0] == len(kept)  # and costs that much less


# Replays.


def test_a_replay_gives_the_logits_of_the_draft(target: Target) -> None:
    """With everything committed, the path's logits for tokens long past are those it gave when they were next."""
    path = sparse_path(target, SkipSet.of(4, [1, 3], [0]))
    for position in (1, 5, 12):
        tokens = LONG[position : position + 5]
        begin(target, LONG[: position + 1])
        then = target.draft_forward(path, [0], 0, tokens[:1], [TokenTree.chain(tokens[1:])])[0]
        begin(target, LONG)
        before = [k.clone() for k in target.cache._keys]
        with naming(f"position {position}"):
            torch.testing.assert_close(target.replay(path, 0, position, tokens), then, **CLOSE)
        for mine, theirs in zip(target.cache._keys, before, strict=True):  # what is committed was left alone
            assert torch.equal(mine[:, :, : len(LONG) - 1], theirs[:, :, : len(LONG) - 1])


# Layers chosen by hidden states.


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
def test_chosen_layers_equal_those_of_the_plain_recursion(family: str) -> None:
    """The dynamic programme, state by state and one layer at a time, with forwards of one token."""
    target = Target(tiny_model(family, layers=8))
    begin(target, LONG)
    keep: list[list[Tensor]] = [[]]
    target.forward([0], [LONG[-1]], [TokenTree.chain([4, 5])], keep=keep)
    target.commit(0, (0,))
    token, position, full = 4, len(LONG), keep[0][0][:, 1]

    def through(layer: int, state: Tensor) -> Tensor:
        one = torch.tensor([[token]])
        block = Block([0], [position + 1], one, torch.zeros_like(one), None, target.cache, [position])
        with torch.inference_mode():
            return target.full.part(layer, layer + 1).drive(target, block, state[None, None], normed=False)[0, 0]

    def likeness(state: Tensor, layer: int) -> float:
        return float(torch.cosine_similarity(state, full[layer + 1], dim=0))

    best: dict[int, tuple[Tensor, list[int]]] = {0: (full[0], [])}
    for layer in range(8):
        after: dict[int, tuple[Tensor, list[int]]] = {}
        for j in range(5):
            options = []
            if j in best:
                options.append((through(layer, best[j][0]), best[j][1]))
            if j - 1 in best and 1 <= layer <= 6:
                options.append((best[j - 1][0], [*best[j - 1][1], layer]))
            if options:
                after[j] = max(options, key=lambda option: likeness(option[0], layer))
        best = after
    for count in (1, 2, 4):
        ours = most_similar_skips(target, 0, position, token, full, count, range(1, 7))
        assert sorted(ours.attention) == best[count][1] and ours.attention == ours.mlp, count


def test_exit_logits_are_the_head_on_the_exit_s_states() -> None:
    target = Target(tiny_model("llama"))
    begin(target, LONG)
    keep: list[list[Tensor]] = [[]]
    tree = TokenTree.chain([4, 5, 6])
    logits = target.forward([0], [LONG[-1]], [tree], keep=keep)[0]
    assert torch.equal(exit_tokens(target, keep[0][0][4]), logits.argmax(-1))
    early = target.draft_forward(sparse_path(target, SkipSet.from_layer(4, 2)), [0], 0, [LONG[-1]], [tree])[0]
    assert torch.equal(exit_tokens(target, keep[0][0][2]), early.argmax(-1))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_replaying_in_blocks_gives_the_logits_of_each_block(family: str) -> None:
    """One forward gives what `replay` gives in several; through the full path, the logits of the text itself."""
    target = Target(tiny_model(family))
    text = torch.randint(96, (31,), generator=torch.Generator().manual_seed(1)).tolist()
    alone = teacher_forced(target, text, 10, block=1)
    target.allocate(1, len(text) + 40)
    target.prefill(0, text)
    path = sparse_path(target, SkipSet(frozenset({1}), frozenset({2})))
    for tried in (target.full, path):
        together = target.replay(tried, 0, 10, text[10:], block=4)
        apart = torch.cat([target.replay(tried, 0, i, text[i : i + 4]) for i in range(10, 31, 4)])
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
        if tried is target.full:
            torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
