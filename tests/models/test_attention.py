"""Masks against walking the tree, and grouped attention against the stock one that repeats keys and values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from naming import naming
from random_trees import ancestry, random_tree
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.attention import FLEX, IMPLEMENTATIONS, NAME, additive, flex, grouped_sdpa, visible_slots
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model

CPU = torch.device("cpu")


def seen_slots(start: int, tree: TokenTree, node: int, window: int | None) -> set[int]:
    """The slots that a node (-1: the root) may attend to, found by walking up, with their positions in the text."""
    path = ancestry(tree, node) if node >= 0 else []
    positions = {slot: slot for slot in range(start)} | {start: start}
    positions |= {start + 1 + n: start + 1 + depth for depth, n in enumerate(path)}
    last = max(positions.values())
    return {slot for slot, position in positions.items() if window is None or last - position < window}


def laid_out(trees: list[TokenTree]) -> tuple[Tensor, Tensor]:
    """Depths (B, N) and sees (B, N, N) of root and tree a row, padded to the widest."""
    width = 1 + max(len(tree) for tree in trees)
    depths = torch.zeros(len(trees), width, dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    sees[:, :, 0] = True
    for b, tree in enumerate(trees):
        end = 1 + len(tree)
        depths[b, 1:end] = tree.depths
        sees[b, 1:end, 1:end] = tree.sees
    return depths, sees


def test_every_token_sees_the_prefix_and_its_ancestors() -> None:
    starts = ([0], [1], [7], [8], [30], [5, 0, 30], [9, 9])
    for first, window in itertools.product(starts, (None, 1, 3, 8, 1000)):
        with naming(f"texts of {first} tokens", f"window {window}"):
            check_what_is_seen(first, window)


def check_what_is_seen(starts: list[int], window: int | None) -> None:
    rng = np.random.default_rng(sum(starts))
    for size, spare in itertools.product((0, 1, 4, 20), (0, 5)):  # spare slots hold nothing, whatever they once held
        trees = [random_tree(rng, size if b == 0 else int(rng.integers(0, 12))) for b in range(len(starts))]
        depths, sees = laid_out(trees)
        span = max(starts) + depths.shape[1] + spare
        visible = visible_slots(starts, depths, sees, span, window, CPU)
        if visible is None:  # nothing to hide: true of a lone token that sees all slots there are
            assert (len(starts), depths.shape[1]) == (1, 1)
            assert seen_slots(starts[0], trees[0], -1, window) == set(range(span))
            continue
        assert visible.shape == (len(starts), depths.shape[1], span)
        for b, (start, tree) in enumerate(zip(starts, trees, strict=True)):
            for token in range(1 + len(tree)):
                found = set(visible[b, token].nonzero().flatten().tolist())
                assert found == seen_slots(start, tree, token - 1, window)


def test_without_a_tree_the_mask_is_causal() -> None:
    width = 6
    for start, window in itertools.product((0, 3, 10), (None, 1, 4)):
        visible = visible_slots([start], torch.arange(width)[None], None, start + width, window, CPU)
        assert visible is not None
        for token in range(width):
            first = 0 if window is None else max(0, start + token - window + 1)
            seen = visible[0, token].nonzero().flatten().tolist()
            assert seen == list(range(first, start + token + 1)), (start, window)


def test_a_single_token_in_a_batch_is_masked() -> None:
    """Its row is shorter than the span: the slots after it hold another request's past."""
    visible = visible_slots([2, 5], torch.zeros(2, 1, dtype=torch.long), None, 6, None, CPU)
    assert visible is not None
    assert visible[:, 0].long().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_additive_mask_is_zero_or_the_lowest_number(dtype: torch.dtype) -> None:
    visible = torch.tensor([[[True, False], [True, True]]])
    mask = additive(visible, dtype)
    assert mask is not None
    lowest = torch.finfo(dtype).min
    assert mask.shape == (1, 1, 2, 2) and mask.dtype == dtype
    assert mask[0, 0].tolist() == [[0.0, lowest], [0.0, 0.0]]
    assert torch.isfinite(mask).all()  # a fully hidden padding row must not turn into NaN
    assert additive(None, dtype) is None


class Attention(nn.Module):
    """The attributes of a stock attention layer that the stock attention function reads."""

    def __init__(self, share: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = share, True


def test_grouped_attention_equals_stock_attention() -> None:
    widths = ((1, False), (1, True), (5, True))  # only a lone token goes without a mask
    for rows, sharing, width in itertools.product((1, 3), ((4, 4), (4, 2), (6, 2), (8, 1)), widths):
        with naming(f"{rows} rows", "heads and groups: {} and {}".format(*sharing), "width {}, mask {}".format(*width)):
            check_grouped_attention(rows, *sharing, *width)


def check_grouped_attention(rows: int, heads: int, groups: int, width: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(rows, heads, width, 8, generator=generator)
    key, value = (torch.randn(rows, groups, 11, size, generator=generator) for size in (8, 6))
    mask = folded = None
    if masked:
        visible = torch.rand(rows, width, 11, generator=generator) < 0.6
        visible[:, :, 0] = True
        mask, folded = additive(visible, torch.float32), additive(visible, torch.float32, share=heads // groups)
    module = Attention(heads // groups)
    ours, _ = grouped_sdpa(module, query, key, value, folded, scaling=0.3)
    stock, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-6)


def test_a_fully_masked_row_is_finite() -> None:
    query, key, value = (torch.randn(1, 2, n, 4) for n in (2, 3, 3))
    mask = additive(torch.zeros(1, 2, 3, dtype=torch.bool), torch.float32)
    assert torch.isfinite(grouped_sdpa(Attention(1), query, key, value, mask)[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt_neox"])
def test_every_implementation_gives_the_same_logits_on_trees(family: str) -> None:
    """Ragged rows of trees after prefixes that reach past the sliding window, in float32."""
    model, rng = tiny_model(family), np.random.default_rng(1)
    trees = [random_tree(rng, 14), random_tree(rng, 6), TokenTree.empty()]
    prefixes = [rng.integers(0, 96, length).tolist() for length in (21, 3, 12)]
    results = {}
    for name in IMPLEMENTATIONS:
        target = Target(model, attention=name)
        target.allocate(3, 64)
        for row, prefix in enumerate(prefixes):
            target.prefill(row, prefix)
        results[name] = torch.cat(target.forward([0, 1, 2], [1, 2, 3], trees))
    assert results["sdpa"].std() > 0.1
    for name in ("eager", "flex"):
        torch.testing.assert_close(results[name], results["sdpa"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "function"), [("sdpa", NAME), ("eager", "eager"), ("flex", FLEX)])
def test_the_requested_implementation_is_used(name: str, function: str) -> None:
    target = Target(tiny_model(), attention=name)
    assert {layer.self_attn.config._attn_implementation for layer in target.full.layers} == {function}
    assert target.model.config._attn_implementation == "sdpa"  # the model itself is left as it was


@pytest.mark.slow
def test_flex_applies_softcap_before_the_mask() -> None:
    """Capped afterwards, the mask's lowest number would become a mere -softcap."""
    query, key, value = (5 * torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    visible = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    mask = additive(visible, torch.float32)
    ours, _ = flex(Attention(1), query, key, value, mask, scaling=0.3, softcap=2.0)
    scores = 2.0 * torch.tanh(query @ key.mT * 0.3 / 2.0)
    expected = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1) @ value
    torch.testing.assert_close(ours.transpose(1, 2), expected, rtol=1e-5, atol=1e-5)
