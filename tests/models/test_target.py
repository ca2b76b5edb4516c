"""The target against the stock model: trees, batches, sparse paths, and an unchanged user's model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel

from begun import CLOSE, LONG, SHORT, begin
from naming import naming
from random_trees import ancestry, random_tree
from selfdraft.core.acceptance import accept_greedy
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.models.forward.target import PREFILL_CHUNK, Path, Target
from selfdraft.models.loading.tiny import FAMILIES, WINDOW, tiny_model
from selfdraft.models.paths.sparse import sparse_path
from selfdraft.models.reference.teacher_forced import teacher_forced, teacher_forced_in


@torch.inference_mode()
def all_stock_logits(model: PreTrainedModel, text: list[int]) -> Tensor:
    """(N, V) what the stock model puts after every token of the text, no cache involved."""
    return model(torch.tensor([text]), use_cache=False).logits[0]


def stock_logits(model: PreTrainedModel, text: list[int]) -> Tensor:
    """(V,) what it puts after the text."""
    return all_stock_logits(model, text)[-1]


def assert_tree_is_right(model: PreTrainedModel, prefix: list[int], tree: TokenTree, logits: Tensor) -> None:
    assert logits.shape == (len(tree) + 1, model.config.vocab_size)
    inner = {ROOT, *tree.parents.tolist()}
    for leaf in [node for node in range(len(tree)) if node not in inner] or [ROOT]:
        nodes = ancestry(tree, leaf)  # of which one forward has all logits
        stock = all_stock_logits(model, prefix + tree.tokens[nodes].tolist())[len(prefix) - 1 :]
        torch.testing.assert_close(logits[[0, *(node + 1 for node in nodes)]], stock, **CLOSE)


def test_a_tree_gives_the_logits_of_every_branch_by_itself(model: PreTrainedModel, target: Target) -> None:
    for prompt in (SHORT[:1], SHORT, LONG):
        begin(target, prompt)
        for seed, nodes in ((0, 0), (1, 1), (2, 14)):
            tree = random_tree(np.random.default_rng(seed), nodes)
            logits = target.forward([0], [prompt[-1]], [tree])[0]
            with naming(f"{nodes} nodes after {len(prompt)} tokens"):
                assert_tree_is_right(model, prompt, tree, logits)


def test_a_chain_longer_than_the_sliding_window_is_right_at_every_depth(model: PreTrainedModel, target: Target) -> None:
    chain = TokenTree.chain([3 * i % 96 for i in range(2 * WINDOW + 3)])
    begin(target, SHORT)
    assert_tree_is_right(model, SHORT, chain, target.forward([0], [SHORT[-1]], [chain])[0])


def test_rows_of_a_ragged_batch_do_not_see_each_other(model: PreTrainedModel, target: Target) -> None:
    prompts = [LONG, SHORT, LONG[:9]]
    trees = [random_tree(np.random.default_rng(0), 5), TokenTree.empty(), random_tree(np.random.default_rng(1), 12)]
    begin(target, *prompts)
    for rows in ([0, 1, 2], [0, 1], [2, 0], [1]):
        logits = target.forward(rows, [prompts[row][-1] for row in rows], [trees[row] for row in rows])
        for row, row_logits in zip(rows, logits, strict=True):
            assert_tree_is_right(model, prompts[row], trees[row], row_logits)


def test_decoding_continues_from_a_committed_branch(model: PreTrainedModel, target: Target) -> None:
    text = LONG.copy()
    begin(target, text)
    tree = TokenTree(torch.tensor([4, 5, 6, 7, 8]), torch.tensor([-1, -1, 0, 1, 3]), torch.ones(5).bool())
    for path in ((1, 3, 4), (0, 2), (), (1,)):
        logits = target.forward([0], [text[-1]], [tree])[0]
        assert_tree_is_right(model, text, tree, logits)
        target.commit(0, path)
        text += [*tree.tokens[list(path)].tolist(), 11]


def test_probes_are_computed_like_candidates_but_never_accepted(model: PreTrainedModel, target: Target) -> None:
    text = LONG.copy()
    for _ in range(3):
        text.append(int(stock_logits(model, text).argmax()))
    right = text[len(LONG) :]
    begin(target, LONG)
    candidates = TokenTree.chain(right)
    logits = target.forward([0], [LONG[-1]], [candidates])[0]
    assert accept_greedy(candidates, logits.argmax(-1)).nodes == (0, 1, 2)
    probes = TokenTree(candidates.tokens, candidates.parents, torch.tensor([True, False, True]))
    again = target.forward([0], [LONG[-1]], [probes])[0]
    assert torch.equal(again, logits)
    assert accept_greedy(probes, again.argmax(-1)).nodes == (0,)


def test_prefill_may_come_in_chunks(model: PreTrainedModel) -> None:
    target = Target(model)
    text = [int(t) for t in np.random.default_rng(0).integers(96, size=40)]
    target.allocate(1, 0)
    target.prefill(0, text[:13])
    target.prefill(0, [])
    target.prefill(0, text[13:-1])
    assert target.cache.lengths == [39]
    torch.testing.assert_close(
        target.forward([0], [text[-1]], [TokenTree.empty()])[0][0], stock_logits(model, text), **CLOSE
    )


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_prompt_longer_than_a_chunk_is_prefilled_correctly(family: str) -> None:
    model = tiny_model(family, max_positions=2 * PREFILL_CHUNK)
    text = [int(t) for t in np.random.default_rng(0).integers(96, size=PREFILL_CHUNK + 40)]
    target = Target(model)
    begin(target, text)
    logits = target.forward([0], [text[-1]], [TokenTree.empty()])[0][0]
    torch.testing.assert_close(logits, stock_logits(model, text), **CLOSE)


def test_only_full_forwards_after_the_prefill_are_counted() -> None:
    target = Target(tiny_model("llama"))
    assert target.forwards == 0  # comparing with the stock forward is not decoding
    begin(target, LONG)
    target.draft_forward(sparse_path(target, SkipSet.of(4, [1], [])), [0], 0, [1], [TokenTree.empty()])
    assert target.forwards == 0
    target.draft_forward(target.full, [0], 0, [1], [TokenTree.chain([1, 2])])
    target.forward([0], [1], [TokenTree.empty()])
    assert target.forwards == 2


# Sparse paths.

SKIPS = {
    "attention": SkipSet.of(4, [1, 3], []),
    "mlp": SkipSet.of(4, [], [0, 2]),
    "layers": SkipSet.of(4, [1, 2], [1, 2]),
    "mixed": SkipSet.of(4, [0, 1], [1, 3]),
}


@contextmanager
def zeroed(target: Target, skip: SkipSet) -> Iterator[None]:
    """The stock model with the skipped sublayers' contribution to the residual stream multiplied by zero."""
    anatomy, hooks = target.anatomy, []
    for layers, name in ((skip.attention, anatomy.attention_name), (skip.mlp, anatomy.mlp_name)):
        for index in layers:
            sublayer = getattr(anatomy.layers[index], name)
            hooks.append(sublayer.register_forward_hook(lambda module, inputs, output: _nothing(output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _nothing(output: Tensor | tuple) -> Tensor | tuple:
    return torch.zeros_like(output) if isinstance(output, Tensor) else (torch.zeros_like(output[0]), *output[1:])


def test_a_sparse_path_equals_the_stock_model_without_those_sublayers(model: PreTrainedModel, target: Target) -> None:
    tokens = [11, 48, 30, 77, 2]
    chain = TokenTree.chain(tokens[1:])
    paths = {name: sparse_path(target, skip) for name, skip in SKIPS.items()}
    for prefix in ([], SHORT, LONG):
        target.allocate(1, 0)
        target.prefill(0, prefix)
        full = target.draft_forward(target.full, [0], 0, [tokens[0]], [chain])[0]
        for name, skip in SKIPS.items():
            with torch.inference_mode():
                past = model(torch.tensor([prefix]), use_cache=True).past_key_values if prefix else None
                with zeroed(target, skip):
                    expected = model(torch.tensor([tokens]), past_key_values=past).logits[0]
            ours = target.draft_forward(paths[name], [0], 0, [tokens[0]], [chain])[0]
            with naming(name, f"after {len(prefix)} tokens"):
                torch.testing.assert_close(ours, expected, **CLOSE)
                assert (ours - full).abs().max() > 0.1  # something was skipped


def test_drafting_token_by_token_equals_one_sparse_forward(target: Target) -> None:
    """Every drafted token attends to the scratch slots of those before it."""
    begin(target, LONG)
    for name, skip in SKIPS.items():
        path, drafted, logits = sparse_path(target, skip), [LONG[-1]], []
        for offset in range(WINDOW + 2):
            logits.append(target.draft_forward(path, [0], offset, [drafted[-1]], [TokenTree.empty()])[0][0])
            drafted.append(int(logits[-1].argmax()))
        at_once = target.draft_forward(path, [0], 0, [drafted[0]], [TokenTree.chain(drafted[1:-1])])[0]
        with naming(name):
            torch.testing.assert_close(torch.stack(logits), at_once, **CLOSE)


def test_drafting_in_a_batch_equals_drafting_by_itself(target: Target) -> None:
    prompts, path = [LONG, SHORT, LONG[:9]], sparse_path(target, SKIPS["mixed"])
    begin(target, *prompts)
    roots = [prompt[-1] for prompt in prompts]
    together = target.draft_forward(path, [0, 1, 2], 0, roots, [TokenTree.empty()] * 3)
    later = target.draft_forward(path, [2, 0], 1, [4, 4], [TokenTree.empty()] * 2)  # row 1 has stopped
    for row in range(3):
        alone = target.draft_forward(path, [row], 0, [roots[row]], [TokenTree.empty()])[0]
        torch.testing.assert_close(together[row], alone, **CLOSE)
        if row != 1:
            alone = target.draft_forward(path, [row], 1, [4], [TokenTree.empty()])[0]
            torch.testing.assert_close(later[[2, 0].index(row)], alone, **CLOSE)


def test_a_skipped_attention_writes_no_keys(target: Target) -> None:
    begin(target, LONG)
    length = len(LONG) - 1
    for root, (name, skip) in enumerate(SKIPS.items()):  # another root writes other keys than the path before
        before = [(k.clone(), v.clone()) for k, v in zip(target.cache._keys, target.cache._values, strict=True)]
        target.draft_forward(sparse_path(target, skip), [0], 0, [root], [TokenTree.chain([2, 3])])
        for layer, (keys, values) in enumerate(before):
            for now, then in ((target.cache._keys[layer], keys), (target.cache._values[layer], values)):
                assert torch.equal(now, then) == (layer in skip.attention), (name, layer)
                # And those that do, only in the three scratch slots.
                assert torch.equal(now[:, :, :length], then[:, :, :length]), (name, layer)
                assert torch.equal(now[:, :, length + 3 :], then[:, :, length + 3 :]), (name, layer)


def test_sparse_paths_coexist(target: Target) -> None:
    begin(target, LONG)

    def run(path: Path) -> Tensor:
        return target.draft_forward(path, [0], 0, [1], [TokenTree.chain([2, 3])])[0]

    first = sparse_path(target, SKIPS["attention"])
    expected, full = run(first), run(target.full)
    second = sparse_path(target, SKIPS["layers"])
    other = run(second)
    assert torch.equal(run(first), expected)
    assert torch.equal(run(target.full), full)
    assert torch.equal(run(second), other)
    assert not torch.equal(expected, other)


def test_skipping_nothing_equals_the_full_path(target: Target) -> None:
    begin(target, LONG)
    tree = random_tree(np.random.default_rng(0), 9)
    empty = target.draft_forward(sparse_path(target, SkipSet()), [0], 0, [1], [tree])[0]
    assert torch.equal(empty, target.forward([0], [1], [tree])[0])


@contextmanager
def calls(*kinds: type[nn.Module]) -> Iterator[Counter[type]]:
    """How often modules of these classes are called."""
    counted: Counter[type] = Counter()

    def count(module: nn.Module, *_: object) -> None:
        if type(module) in kinds:
            counted[type(module)] += 1

    hook = register_module_forward_hook(count)
    try:
        yield counted
    finally:
        hook.remove()


def test_skipped_sublayers_and_layers_are_not_called(target: Target) -> None:
    begin(target, LONG)
    layer = target.full.layers[0]
    attention, mlp = (type(getattr(layer, name)) for name in (target.anatomy.attention_name, target.anatomy.mlp_name))
    for name, skip in {**SKIPS, "nothing": SkipSet()}.items():
        path = sparse_path(target, skip)
        with calls(type(layer), attention, mlp) as counted:
            target.draft_forward(path, [0], 0, [1], [TokenTree.empty()])
        assert counted[type(layer)] == 4 - len(skip.whole_layers()), name
        assert counted[attention] == 4 - len(skip.attention), name
        assert counted[mlp] == 4 - len(skip.mlp), name


def test_the_user_s_model_is_not_changed(model: PreTrainedModel) -> None:
    tokens = torch.tensor([LONG])
    with torch.inference_mode():
        before = model(tokens).logits
        written = model.generate(tokens, max_new_tokens=12, do_sample=False)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modules = {name: id(module) for name, module in model.named_modules()}
        implementation = model.config._attn_implementation
        target = Target(model)
        begin(target, LONG)
        for skip in SKIPS.values():
            target.draft_forward(sparse_path(target, skip), [0], 0, [1], [TokenTree.chain([2, 3])])
        target.forward([0], [LONG[-1]], [random_tree(np.random.default_rng(0), 9)])
        assert torch.equal(model(tokens).logits, before)
        assert torch.equal(model.generate(tokens, max_new_tokens=12, do_sample=False), written)
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.config._attn_implementation == implementation
    assert all(layer is stock for layer, stock in zip(target.anatomy.layers, _stack(model), strict=True))


def _stack(model: PreTrainedModel) -> list[nn.Module]:
    return list(next(m for m in model.base_model.children() if isinstance(m, nn.ModuleList)))


def test_weights_are_shared_not_copied(model: PreTrainedModel) -> None:
    target = Target(model)
    ours = {p.data_ptr() for layer in target.full.layers for p in layer.parameters()}
    assert ours == {p.data_ptr() for layer in target.anatomy.layers for p in layer.parameters()}


def test_packing_changes_no_text(model: PreTrainedModel, target: Target) -> None:
    plain = Target(model, packed=False)
    tree = random_tree(np.random.default_rng(0), 9)
    for each in (target, plain):
        begin(each, LONG)
    torch.testing.assert_close(
        plain.forward([0], [LONG[-1]], [tree])[0], target.forward([0], [LONG[-1]], [tree])[0], **CLOSE
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_rounding_refuses_no_family(family: str) -> None:
    for seed in range(3):
        model = tiny_model(family, seed=seed, dtype=torch.bfloat16)
        with naming(f"seed {seed}"):
            target = Target(model)
        assert target.dtype == torch.bfloat16
        if seed:
            continue
        begin(target, LONG)
        logits = target.forward([0], [LONG[-1]], [TokenTree.empty()])[0][0]
        assert logits.dtype == torch.bfloat16
        stock = stock_logits(model, LONG).float()
        assert (logits.float() - stock).abs().mean() < 0.1 * stock.std()


def test_the_filler_is_the_first_id_that_is_configured() -> None:
    model = tiny_model()
    for pad, eos, expected in (
        (3, 7, 3),
        (None, 7, 7),
        (None, [8, 9], 8),
        (None, None, 0),
        (0, 7, 0),
        (None, [], 0),
        (151329, [200, 9], 9),  # ids that a small or a cut vocabulary does not have
        (-1, None, 0),
    ):
        model.config.pad_token_id, model.config.eos_token_id = pad, eos
        assert Target(model).pad_id == expected, (pad, eos)


def test_scoring_a_text_again_in_blocks_gives_the_same_logits(target: Target) -> None:
    text = [*LONG, *SHORT, *LONG]
    first = teacher_forced(target, text, len(LONG), 1)
    for block in (1, 3, 300):  # the last one grows the cache
        torch.testing.assert_close(teacher_forced_in(target, text, len(LONG), [block])[0], first, atol=1e-4, rtol=1e-4)


def test_allocating_again_clears_all_rows_and_keeps_a_large_enough_cache() -> None:
    target = Target(tiny_model("llama"))
    begin(target, LONG, SHORT)
    cache = target.cache
    target.allocate(2, 100)
    assert target.cache is cache and cache.lengths == [0, 0]
    target.allocate(2, 10_000)
    assert target.cache is cache and cache.slots >= 10_000
    target.prefill(1, SHORT)
    target.allocate(1, 0)  # one text between two batches
    assert target.cache is cache and cache.lengths == [0, 0]
    target.allocate(3, 0)
    assert target.cache is not cache and target.cache.lengths == [0, 0, 0]
