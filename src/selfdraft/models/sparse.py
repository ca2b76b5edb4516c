"""Sparse paths: which parts of the one model a draft runs through. Depth, width and vocabulary combine freely.

A path is a list of layer objects around the shared weights. Making one copies a few small objects and the slices that
it needs; it compiles nothing and touches nothing that another path or the model itself uses.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from selfdraft.core.skipset import SkipSet
from selfdraft.models.anatomy import Anatomy
from selfdraft.models.lightcopy import SkippedAttention, SkippedMLP
from selfdraft.models.packing import PackedLinear, can_pack


@dataclass(frozen=True)
class Path:
    """The part of the model that a forward runs through: all of it, or a sparse selection.

    Attributes:
        layers: the layers that are run, in order.
        types: `full_attention` or `sliding_attention`, for each of them.
        skip: the sublayers left out.
        leading: number of first layers that are the full model's own: verification need not compute them again.
        head: the head's rows for `vocabulary`; None for the whole head.
        vocabulary: (v,) ids that this path may draft; None for all.
        norm: replaces the final norm; None for the model's own.
        feature: (C, C) matrix for the full model's final hidden state of the last committed token; the product is added
            to the next token's state after the leading layers. (EAGLE, Li et al. 2024, arXiv 2401.15077, calls that
            final hidden state the feature.)
    """

    layers: tuple[nn.Module, ...]
    types: tuple[str, ...]
    skip: SkipSet
    leading: int = 0
    head: nn.Module | None = None
    vocabulary: Tensor | None = None
    norm: nn.Module | None = None
    feature: nn.Module | None = None

    def part(self, first: int, end: int) -> Path:
        """Return this path with only its layers from `first` up to `end`."""
        return replace(self, layers=self.layers[first:end], types=self.types[first:end])


@dataclass(frozen=True)
class Reuse:
    """Results of the full model that drafting has computed already for the first tokens of a row's next block.

    Attributes:
        layers: number of leading layers that were run. Their keys and values are in the row's scratch slots.
        states: (m, C) hidden states after them, for the root and the first m - 1 nodes, which form a chain.
    """

    layers: int
    states: Tensor


def ready_tokens(reuse: Sequence[Reuse | None]) -> int:
    """Return how many first tokens of every row a forward need not run through the leading layers again.

    Rows run together, so this is 0 if a row has nothing to reuse or if rows left the full model at different layers.
    """
    known = [r for r in reuse if r is not None]
    if len(known) < len(reuse) or len({r.layers for r in known}) > 1:
        return 0
    return min(len(r.states) for r in known)


def sparse_path(
    full: Path,
    anatomy: Anatomy,
    skip: SkipSet,
    mlps: Mapping[int, nn.Module],
    head: tuple[nn.Module, Tensor] | None,
    *,
    trained: Mapping[int, nn.Module] | None = None,
    norm: nn.Module | None = None,
    feature: nn.Module | None = None,
) -> Path:
    """Return `full` without the sublayers of `skip`, with other MLPs in some layers, and with another head.

    Args:
        mlps: by layer, the module that replaces its MLP, such as a slice of it.
        head: a head for a part of the vocabulary, and the ids of that part.
        trained: by layer, the module that replaces the whole layer. norm: replaces the final norm. feature: see `Path`.
    """
    layers, types, trained = [], [], trained or {}
    whole = skip.whole_layers()
    for index, (layer, kind) in enumerate(zip(full.layers, full.types, strict=True)):
        if index in whole:
            continue
        layer = trained.get(index, layer)
        if index in skip.attention or index in skip.mlp or index in mlps:
            twin = copy.copy(layer)
            twin._modules = dict(layer._modules)
            if index in skip.attention:
                twin._modules[anatomy.attention_name] = SkippedAttention()
            if index in skip.mlp:
                twin._modules[anatomy.mlp_name] = SkippedMLP()
            elif index in mlps:
                twin._modules[anatomy.mlp_name] = mlps[index]
            layer = twin
        layers.append(layer)
        types.append(kind)
    leading = min([*skip.attention, *skip.mlp, *mlps, *trained], default=len(full.layers))
    return Path(tuple(layers), tuple(types), skip, leading, *(head or (None, None)), norm, feature)


def sliced_linear(
    linear: nn.Module, rows: Tensor | None = None, columns: Tensor | None = None, *, packed: bool = False
) -> nn.Module:
    """Copy some outputs (`rows`) or inputs (`columns`) of a matrix, packed where that is possible.

    Args:
        linear: an `nn.Linear` or a `PackedLinear`; both keep the plain (out, in) weight.
    """
    weight, bias = linear.weight.detach(), linear.bias
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias.detach()[rows]
    if columns is not None:
        weight = weight[:, columns]
    small = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    small.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        small.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return PackedLinear(small) if packed and can_pack(small) else small


def sliced_head(head: nn.Module, vocabulary: Sequence[int], *, packed: bool) -> tuple[nn.Module, Tensor]:
    """Return the head's rows for `vocabulary`, and the ids of these rows."""
    ids = torch.tensor(sorted(set(vocabulary)), device=head.weight.device)
    return sliced_linear(head, rows=ids, packed=packed), ids


def spread_out(logits: Tensor, vocabulary: Tensor | None, size: int) -> Tensor:
    """Return (n, v) logits of a part of the vocabulary as (n, size), with -inf for ids that the path cannot draft."""
    if vocabulary is None:
        return logits
    return logits.new_full((len(logits), size), float("-inf")).index_copy_(1, vocabulary, logits)
