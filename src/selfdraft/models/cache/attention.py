"""Attention masks for token trees, and the attention functions that take them.

A node of a tree sees the committed text and its own ancestors, and no other branch. `visible_slots` says this as bool,
and `additive` turns it into numbers that are added to the attention scores. Two attention functions are registered with
transformers: `grouped_sdpa`, which copies no keys for heads that share them, and `flex`.

Shapes: B rows, N query tokens, K key slots, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

NAME, FLEX, PROBE = "selfdraft_grouped_sdpa", "selfdraft_flex", "selfdraft_mask_rule"
IMPLEMENTATIONS = ("sdpa", "eager", "flex")
SMALLEST_FLEX = 16  # the smallest head size that the kernels of compiled flex attention take


@dataclass(frozen=True)
class MaskRule:
    """Says which positions a token may see in a layer, as the family defines it: a window, chunks, …

    Attributes:
        allows: takes tensors of the indices of a row, a head, a query and a key; returns a bool tensor of their shape.
    """

    allows: Callable[..., Tensor]

    @property
    def causal(self) -> bool:
        """Whether a token sees all positions up to its own."""
        return self.allows is causal_mask_function

    def __getitem__(self, _: object) -> MaskRule:
        """Return the rule of a part of the queries and keys, which is the same: Gemma 4 cuts masks."""
        return self

    def between(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return (N, K) bool from the positions of N queries and K keys."""
        first = torch.zeros((), dtype=torch.long)
        return self.allows(first, first, queries[:, None], keys[None, :])


def visible_slots(
    starts: Sequence[int],
    depths: Tensor,
    sees: Tensor | None,
    span: int,
    window: int | None,
    device: torch.device,
    *,
    first_positions: Sequence[int] | None = None,
    held: Sequence[Tensor] | None = None,
    rule: MaskRule | None = None,
) -> Tensor | None:
    """Return (B, N, K) bool: which key slots each token may see; None where all see everything.

    Args:
        starts: B numbers: the slot of each row's first token.
        depths: (B, N) position of each token relative to its row's first one.
        sees: (B, N, N) bool: which tokens of this forward each token sees; None means causal, in order.
        span: K.
        window: how many latest positions a sliding layer sees, the token itself included; None for all.
        first_positions: B numbers: the position of each row's first token; None if it equals the token's slot. The row
            sees the slots before the smaller of the two: its prefix, in order of position unless `held` is given.
        held: per row, the positions of all slots before its start: a selection of its prefix, all of it seen.
        rule: in place of `window`, any rule by positions.
    """
    rows, width = depths.shape
    first_positions = starts if first_positions is None else first_positions
    seen = [min(pair) for pair in zip(starts, first_positions, strict=True)]
    trivial = rows == 1 and width == 1 and span == seen[0] + 1 and (window is None or first_positions[0] < window)
    if trivial and rule is None:
        return None
    if sees is None:
        sees = torch.ones(width, width, dtype=torch.bool).tril().expand(rows, width, width)
    visible = torch.zeros(rows, width, span, dtype=torch.bool)
    for row, start in enumerate(starts):
        visible[row, :, : seen[row]] = True
        visible[row, :, start : start + width] = sees[row]
        if window is not None or rule is not None:
            positions = torch.arange(span)  # of every slot: the prefix in order, then this forward's tokens by depth
            if held is not None:
                positions[:start] = held[row]
            positions[start : start + width] = first_positions[row] + depths[row]
            queries = first_positions[row] + depths[row]
            if rule is not None:
                visible[row] &= rule.between(queries, positions)
            elif window is not None:
                visible[row] &= queries[:, None] - positions[None, :] < window
    return visible.to(device)


def additive(visible: Tensor | None, dtype: torch.dtype, share: int = 1) -> Tensor | None:
    """Return the (B, 1, share * N, K) mask to add to the scores: sdpa, eager and flex all take it, unlike a bool one.

    Args:
        share: query heads that `grouped_sdpa` folds into the query length: the mask is repeated for them here, once per
            forward instead of in every layer.
    """
    if visible is None:
        return None
    if share > 1:
        visible = visible.repeat(1, share, 1)
    # The dtype's lowest finite number, as transformers does: -inf would make a fully masked padding row NaN.
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def grouped_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Run torch's scaled dot product attention without repeating the keys that several query heads share.

    The stock function repeats keys and values for every query head of a group, which copies the whole cache in every
    layer of every step. Here the heads of a group become further queries of one head, (B, H, N, D) to
    (B, G, H/G * N, D), so that only queries are copied.

    Args:
        query: (B, H, N, D). key, value: (B, G, K, D). attention_mask: (B, 1, H/G * N, K) of `additive`, or
            (B, 1, N, K), or None.
        softcap, s_aux: given by families that cap their scores or have attention sinks.

    Returns:
        (B, N, H, D) and no weights, as transformers' attention functions do.

    Raises:
        TypeError: the scores are capped or there are sinks, which the family's own eager attention computes.
    """
    if softcap is not None or s_aux is not None:
        raise TypeError("grouped_sdpa neither caps scores nor knows attention sinks")
    batch, heads, width, size = query.shape
    groups = key.shape[1]
    share = heads // groups
    if attention_mask is not None and attention_mask.shape[-2] != share * width:
        attention_mask = attention_mask.repeat(1, 1, share, 1)
    folded = query.reshape(batch, groups, share * width, size)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, heads, width, value.shape[-1]).transpose(1, 2).contiguous(), None


@cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    """Return torch's flex attention. Its import takes a second (it loads the compiler), so it is imported only here."""
    from torch.nn.attention.flex_attention import flex_attention

    run: Any = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
    return run


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Run torch's flex attention with the mask added to the scores, after these were capped if the family does that.

    Not compiled for small heads, nor on a CPU: there, torch 2.13's compiled kernel corrupts memory if it reads a mask.

    Args:
        query: (B, H, N, D). key, value: (B, G, K, D). attention_mask: (B, 1, N, K) of `additive`, or None.

    Returns:
        (B, N, H, D) and no weights.
    """

    def scores(score: Tensor, row: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if attention_mask is None else score + attention_mask[row, 0, q, k]

    compiled = query.device.type != "cpu" and query.shape[-1] >= SMALLEST_FLEX
    out = _flex_attention(compiled)(query, key, value, score_mod=scores, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, flex)
AttentionInterface.register(NAME, grouped_sdpa)  # transformers' public registry of attention functions


def _rule_only(*_: object, mask_function: Callable[..., Tensor], **__: object) -> MaskRule:
    """Return, in place of a mask, the rule that it would follow."""
    return MaskRule(mask_function)


AttentionMaskInterface.register(PROBE, _rule_only)
