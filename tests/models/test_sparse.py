"""Sparse paths beyond skipped sublayers: reuse of what drafting computed, width, vocabulary, selected keys, replays."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from random_trees import random_tree
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.block import Block
from selfdraft.models.neurons import most_active, neuron_statistics, require_gated_mlps, sliced_mlps
from selfdraft.models.selection import Selection, scoring
from selfdraft.models.sparse import Path, Reuse
from selfdraft.models.target import Target
from selfdraft.models.tiny import FAMILIES, WINDOW, tiny_model

LONG = [7, 33, 81, 2, 14, 27, 55, 90, 1, 68, 12, 44, 9, 23, 71, 38, 6, 50, 19, 85]  # well past the window of 8
SHORT = [5, 17, 3, 60]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
GATED = [family for family in FAMILIES if family != "gpt_neox"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def target(model: PreTrainedModel) -> Target:
    return Target(model)


def begin(target: Target, *prompts: list[int]) -> None:
    target.allocate(len(prompts), 0)
    for row, prompt in enumerate(prompts):
        target.prefill(row, prompt[:-1])


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
    "late sublayers": SkipSet.of(4, [2], [3]),  # what is skipped comes late, but the path goes on behind it
}


@pytest.mark.parametrize("bonus", [True, False], ids=["bonus", "no bonus"])
@pytest.mark.parametrize("skip", REUSED.values(), ids=REUSED)
def test_verification_that_reuses_is_the_plain_one(target: Target, skip: SkipSet, bonus: bool) -> None:
    """Logits, and every layer's keys and values, in a ragged batch; drafts longer than a window among them."""
    prompts, lengths = [LONG, SHORT, LONG[:9]], [5, WINDOW + 2, 2]
    path = target.sparse_path(skip)
    assert path.leading == min(skip.attention | skip.mlp)
    begin(target, *prompts)
    chains, reuse = draft(target, path, prompts, lengths)
    trees = [TokenTree.chain(chain[1:] if bonus else chain[1:-1]) for chain in chains]
    roots = [prompt[-1] for prompt in prompts]
    ours = target.forward([0, 1, 2], roots, trees, reuse=reuse)
    keys = [k.clone() for k in target.cache._keys]
    begin(target, *prompts)
    plain = target.forward([0, 1, 2], roots, trees)
    for row, (a, b) in enumerate(zip(ours, plain, strict=True)):
        torch.testing.assert_close(a, b, **CLOSE)
        assert torch.equal(a.argmax(-1), b.argmax(-1))
        end = len(prompts[row]) + len(trees[row])
        for mine, theirs in zip(keys, target.cache._keys, strict=True):
            torch.testing.assert_close(mine[row, :, :end], theirs[row, :, :end], **CLOSE)


def test_rows_that_left_at_different_layers_are_verified_plainly(target: Target) -> None:
    prompts, roots = [LONG, SHORT], [LONG[-1], SHORT[-1]]
    begin(target, *prompts)
    reuse, trees = [], []
    for row, exit_layer in enumerate((1, 3)):
        path, states = target.sparse_path(SkipSet.from_layer(4, exit_layer)), []
        for offset, token in enumerate([roots[row], 4, 9]):
            target.draft_forward(path, [row], offset, [token], [TokenTree.empty()], keep=[states])
        reuse.append(Reuse(path.leading, torch.cat(states)))
        trees.append(TokenTree.chain([4, 9, 30]))
    ours = target.forward([0, 1], roots, trees, reuse=reuse)
    for mine, plain in zip(ours, target.forward([0, 1], roots, trees), strict=True):
        torch.testing.assert_close(mine, plain, **CLOSE)


def test_leaves_beside_a_reused_chain_are_right(target: Target) -> None:
    path = target.sparse_path(REUSED["exit"])
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


def test_only_what_is_missing_is_computed() -> None:
    target = Target(tiny_model("llama"))
    path = target.sparse_path(REUSED["exit"])
    begin(target, LONG)
    (chain,), reuse = draft(target, path, [LONG], [4])
    with layer_calls(target) as calls:
        target.forward([0], [LONG[-1]], [TokenTree.chain(chain[1:-1])], reuse=reuse)
        assert calls == [[], [], [4], [4]]
        target.forward([0], [LONG[-1]], [TokenTree.chain(chain[1:])], reuse=reuse)
        assert calls == [[1], [1], [4, 5], [4, 5]]
        target.forward([0], [LONG[-1]], [TokenTree.chain(chain[1:])], reuse=[None])
        assert calls == [[1, 5], [1, 5], [4, 5, 5], [4, 5, 5]]


def test_states_are_kept_before_and_behind_every_layer(model: PreTrainedModel, target: Target) -> None:
    begin(target, LONG[:1])
    keep: list[list[Tensor]] = [[]]
    target.forward([0], LONG[:1], [TokenTree.chain(LONG[1:])], keep=keep)
    with torch.inference_mode():
        stock = model(torch.tensor([LONG]), output_hidden_states=True, use_cache=False).hidden_states
    (ours,) = keep[0]
    assert ours.shape == (5, len(LONG), stock[0].shape[-1])
    for layer in range(4):  # the stock model's last one is behind the final norm
        torch.testing.assert_close(ours[layer], stock[layer][0], **CLOSE)


# Vocabulary.


def test_a_reduced_vocabulary_says_the_same_of_its_tokens_and_nothing_of_others(target: Target) -> None:
    ids = [3, 50, 4, 95, 0, 3]
    begin(target, LONG)
    skip = SkipSet.of(4, [1], [])
    tree = random_tree(np.random.default_rng(0), 6)
    whole = target.draft_forward(target.sparse_path(skip), [0], 0, [1], [tree])[0]
    path = target.sparse_path(skip, vocabulary=ids)
    part = target.draft_forward(path, [0], 0, [1], [tree])[0]
    assert part.shape == whole.shape
    kept = sorted(set(ids))
    torch.testing.assert_close(part[:, kept], whole[:, kept], **CLOSE)
    others = [i for i in range(96) if i not in kept]
    assert bool((part[:, others] == float("-inf")).all())
    assert path.head.weight.shape[0] == len(kept)  # and costs that much less


# Replays.


@pytest.mark.parametrize("position", [1, 5, 12])
def test_a_replay_is_what_was_drafted_there(target: Target, position: int) -> None:
    """With everything committed, the path's logits for tokens long past are those it gave when they were next."""
    path = target.sparse_path(SkipSet.of(4, [1, 3], [0]))
    tokens = LONG[position : position + 5]
    begin(target, LONG[: position + 1])
    then = target.draft_forward(path, [0], 0, tokens[:1], [TokenTree.chain(tokens[1:])])[0]
    begin(target, LONG)
    before = [k.clone() for k in target.cache._keys]
    torch.testing.assert_close(target.replay(path, 0, position, tokens), then, **CLOSE)
    for mine, theirs in zip(target.cache._keys, before, strict=True):  # what is committed was left alone
        assert torch.equal(mine[:, :, : len(LONG) - 1], theirs[:, :, : len(LONG) - 1])


# Width.


def activations(model: PreTrainedModel, target: Target, text: list[int]) -> list[Tensor]:
    """Per layer (S, F): what the stock model's down projections get."""
    seen: list[Tensor] = []
    downs = [getattr(layer, target.anatomy.mlp_name).down_proj for layer in target.anatomy.layers]
    hooks = [down.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0][0])) for down in downs]
    with torch.inference_mode():
        model(torch.tensor([text]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", GATED)
def test_neurons_are_chosen_by_their_share_in_the_prompt_s_activations(family: str) -> None:
    model = tiny_model(family)
    target = Target(model)
    begin(target, SHORT)
    require_gated_mlps(target)
    ours = neuron_statistics(target, LONG)
    for mine, z in zip(ours, activations(model, target, LONG), strict=True):
        share = z.abs() / z.norm(dim=1, keepdim=True)
        torch.testing.assert_close(mine, share.norm(dim=0), rtol=1e-3, atol=1e-3)
        (kept,) = most_active([mine], 0.25)
        assert len(kept) == 16 and set(kept.tolist()) == set(mine.argsort()[-16:].tolist())
    assert target.cache.lengths == [len(SHORT) - 1]  # and the request's cache was left alone


@pytest.mark.parametrize("family", GATED)
def test_a_sliced_mlp_is_the_stock_one_with_all_other_neurons_at_zero(family: str) -> None:
    model = tiny_model(family)
    target = Target(model)
    kept = most_active(neuron_statistics(target, LONG), 0.5)
    skip = SkipSet.of(4, [1], [2])
    path = target.sparse_path(skip, mlps=sliced_mlps(target, kept, skip))
    assert path.leading == 0
    begin(target, LONG)
    ours = target.draft_forward(path, [0], 0, [1], [TokenTree.chain([2, 3])])[0]
    with torch.inference_mode():
        past = model(torch.tensor([LONG[:-1]]), use_cache=True).past_key_values  # the prefix has seen whole MLPs
        anatomy = target.anatomy
        for layer, neurons in zip(anatomy.layers, kept, strict=True):
            only = torch.zeros(64).index_fill_(0, neurons, 1.0)
            getattr(layer, anatomy.mlp_name).down_proj.register_forward_pre_hook(lambda m, x, only=only: (x[0] * only,))
        attention, mlp = (
            getattr(anatomy.layers[1], anatomy.attention_name),
            getattr(anatomy.layers[2], anatomy.mlp_name),
        )
        attention.register_forward_hook(lambda m, x, out: (torch.zeros_like(out[0]), *out[1:]))
        mlp.register_forward_hook(lambda m, x, out: torch.zeros_like(out))
        expected = model(torch.tensor([[1, 2, 3]]), past_key_values=past).logits[0]
    torch.testing.assert_close(ours, expected, **CLOSE)
    whole = target.draft_forward(target.sparse_path(skip), [0], 0, [1], [TokenTree.chain([2, 3])])[0]
    assert (ours - whole).abs().max() > 0.01


def test_a_family_without_gated_mlps_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^drafter=width_skip: model family 'gpt_neox' has no gated MLPs"):
        require_gated_mlps(Target(tiny_model("gpt_neox")))


def test_a_slice_holds_so_much_less() -> None:
    target = Target(tiny_model("llama"))
    sliced = sliced_mlps(target, [torch.tensor([1, 5, 6])] * 4, SkipSet.of(4, [], [3]))
    assert set(sliced) == {0, 1, 2}
    shapes = {
        name: tuple(m.weight.shape)
        for name, m in sliced[0].named_children()
        if isinstance(m, nn.Module) and hasattr(m, "weight")
    }
    assert shapes == {"gate_proj": (3, 32), "up_proj": (3, 32), "down_proj": (32, 3)}


# Keys.


@pytest.mark.parametrize("prompt", [LONG, SHORT], ids=len)
def test_selecting_all_keys_changes_nothing(target: Target, prompt: list[int]) -> None:
    begin(target, prompt)
    keys = Selection(4, 1)
    keys.choose(0, target.cache, torch.arange(len(prompt) - 1))
    for path in (target.sparse_path(SkipSet()), target.sparse_path(SkipSet.of(4, [1], [2]))):
        for offset, token in enumerate([prompt[-1], 4, 9]):
            ours = target.draft_forward(path, [0], offset, [token], [TokenTree.chain([8])], keys=keys)[0]
            plain = target.draft_forward(path, [0], offset, [token], [TokenTree.chain([8])])[0]
            torch.testing.assert_close(ours, plain, **CLOSE)


def test_selected_keys_are_all_that_is_seen_and_stand_where_they_stood(model: PreTrainedModel, target: Target) -> None:
    """Against the stock model with a mask over the whole prefix."""
    chosen = torch.tensor([0, 1, 9, 14, 15, 16, 17, 18])
    begin(target, LONG)
    keys = Selection(4, 1)
    keys.choose(0, target.cache, chosen)
    path, tokens = target.sparse_path(SkipSet()), [LONG[-1], 4, 9, 30]
    ours = [
        target.draft_forward(path, [0], offset, [token], [TokenTree.empty()], keys=keys)[0][0]
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


def test_selections_of_a_batch_are_each_row_s_own(target: Target) -> None:
    prompts = [LONG, SHORT, LONG[:9]]
    begin(target, *prompts)
    keys, alone = Selection(4, 3), Selection(4, 3)
    choices = [torch.tensor([0, 1, 15, 16, 17, 18]), torch.arange(3), torch.tensor([0, 5, 6, 7])]
    for row, choice in enumerate(choices):
        keys.choose(row, target.cache, choice)
    path = target.sparse_path(SkipSet.of(4, [1], []))
    roots = [prompt[-1] for prompt in prompts]
    together = target.draft_forward(path, [0, 1, 2], 0, roots, [TokenTree.empty()] * 3, keys=keys)
    for row, choice in enumerate(choices):
        alone.choose(row, target.cache, choice)
        by_itself = target.draft_forward(path, [row], 0, [roots[row]], [TokenTree.empty()], keys=alone)[0]
        torch.testing.assert_close(together[row], by_itself, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])
def test_scores_are_the_attention_that_the_last_query_gave(family: str) -> None:
    model = tiny_model(family, attn_implementation="eager")
    target = Target(model)
    begin(target, LONG)
    path, scores = scoring(target, target.sparse_path(SkipSet()))
    target.draft_forward(path, [0], 0, [LONG[-1]], [TokenTree.empty()])
    with torch.inference_mode():
        weights = model(torch.tensor([LONG]), output_attentions=True, use_cache=False).attentions
    expected = sum(w[0, :, -1].sum(0) for w in weights)
    torch.testing.assert_close(scores.sums[0], expected, rtol=1e-3, atol=1e-3)
    assert scores.best(5, 2, 19).tolist() == sorted((2 + expected[2:19].topk(5).indices).tolist())


def test_scores_of_a_family_with_attention_of_its_own_are_refused_by_name() -> None:
    target = Target(tiny_model("gemma2"))
    with pytest.raises(UserError, match=r"^drafter\.top_k: .*'gemma2'"):
        scoring(target, target.sparse_path(SkipSet()))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_a_text_replayed_in_blocks_gives_the_logits_of_every_block_by_itself(family: str) -> None:
    """In one forward what `replay` gives in several: and, through the full path, those of the text itself."""
    target = Target(tiny_model(family))
    text = torch.randint(96, (31,), generator=torch.Generator().manual_seed(1)).tolist()
    alone = target.teacher_forced(text, 10, block=1)
    target.allocate(1, len(text) + 40)
    target.prefill(0, text)
    path = target.sparse_path(SkipSet(frozenset({1}), frozenset({2})))
    for tried in (target.full, path):
        together = target.replay(tried, 0, 10, text[10:], block=4)
        apart = torch.cat([target.replay(tried, 0, i, text[i : i + 4]) for i in range(10, 31, 4)])
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
        if tried is target.full:
            torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


# Layers chosen by hidden states.


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
def test_layers_are_chosen_by_the_plain_recursion(family: str, count: int) -> None:
    """The dynamic programme, state by state and one layer at a time, with forwards of one token."""
    target = Target(tiny_model(family, layers=8))
    begin(target, LONG)
    keep: list[list[Tensor]] = [[]]
    target.forward([0], [LONG[-1]], [TokenTree.chain([4, 5])], keep=keep)
    target.commit(0, (0,))
    token, position, full = 4, len(LONG), keep[0][0][:, 1]
    ours = target.most_similar_skips(0, position, token, full, count, range(1, 7))

    def through(layer: int, state: Tensor) -> Tensor:
        one = torch.tensor([[token]])
        block = Block([0], [position + 1], one, torch.zeros_like(one), None, target.cache, [position])
        with torch.inference_mode():
            return target.run(target.full.part(layer, layer + 1), block, state[None, None], normed=False)[0, 0]

    def likeness(state: Tensor, layer: int) -> float:
        return float(torch.cosine_similarity(state, full[layer + 1], dim=0))

    best: dict[int, tuple[Tensor, list[int]]] = {0: (full[0], [])}
    for layer in range(8):
        behind: dict[int, tuple[Tensor, list[int]]] = {}
        for j in range(count + 1):
            options = []
            if j in best:
                options.append((through(layer, best[j][0]), best[j][1]))
            if j - 1 in best and 1 <= layer <= 6:
                options.append((best[j - 1][0], [*best[j - 1][1], layer]))
            if options:
                behind[j] = max(options, key=lambda option: likeness(option[0], layer))
        best = behind
    assert sorted(ours.attention) == best[count][1] and ours.attention == ours.mlp


def test_what_an_exit_says_is_the_head_on_its_states() -> None:
    target = Target(tiny_model("llama"))
    begin(target, LONG)
    keep: list[list[Tensor]] = [[]]
    tree = TokenTree.chain([4, 5, 6])
    logits = target.forward([0], [LONG[-1]], [tree], keep=keep)[0]
    assert torch.equal(target.exit_tokens(keep[0][0][4]), logits.argmax(-1))
    early = target.draft_forward(target.sparse_path(SkipSet.from_layer(4, 2)), [0], 0, [LONG[-1]], [tree])[0]
    assert torch.equal(target.exit_tokens(keep[0][0][2]), early.argmax(-1))
