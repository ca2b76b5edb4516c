"""Sparse paths: which parts of the one model a draft runs through. Depth, width and vocabulary combine freely.

A path is a list of layer objects around the shared weights. Making one copies a few small objects and whatever slices
it is asked for, compiles nothing and touches nothing that another path or the model itself uses.
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
    """What a forward runs through: all of the model, or a sparse selection of it.

    Attributes:
        layers: in order, those that are run.
        types: of each, `full_attention` or `sliding_attention`.
        skip: the sublayers left out.
        leading: how many layers at the start are the full model's own: what they compute need not be computed again.
        head: the head's rows of `vocabulary`; None for the whole head.
        vocabulary: (v,) ids that this path may say; None for all.
        norm: in the place of the final norm; None for the model's own.
        feature: (C, C) what is made of the full model's final hidden state of the last committed token, and added to
            the next one's behind the leading layers. (EAGLE, Li et al. 2024, arXiv 2401.15077, calls it the feature.)
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
        """The layers from `first` up to `end`."""
        return replace(self, layers=self.layers[first:end], types=self.types[first:end])


@dataclass(frozen=True)
class Reuse:
    """What drafting has computed of the full model for the first tokens of a row's next block.

    Attributes:
        layers: how many leading layers. Their keys and values stand in the row's scratch slots.
        states: (m, C) hidden states behind them, of the root and of the m - 1 first nodes, which form a chain.
    """

    layers: int
    states: Tensor


def ready_tokens(reuse: Sequence[Reuse | None]) -> int:
    """How many first tokens of every row one forward need not run through the leading layers: rows go together, so
    none where a row has nothing, or where rows left the full model at different layers."""
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
    """`full` without the sublayers of `skip`, with other MLPs in some layers, and with another head.

    Args:
        mlps: by layer, what stands in for its MLP, such as a slice of it.
        head: of a part of the vocabulary, and that part's ids.
        trained: by layer, what stands in for it altogether. norm: in the place of the final one. feature: see `Path`.
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
    """Some of a matrix's outputs (`rows`) or inputs (`columns`), as a copy, packed where that is possible.

    Args:
        linear: an `nn.Linear` or a `PackedLinear`, which both keep the plain (out, in) weight.
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
    """The head's rows of `vocabulary`, and the ids they stand for."""
    ids = torch.tensor(sorted(set(vocabulary)), device=head.weight.device)
    return sliced_linear(head, rows=ids, packed=packed), ids


def spread_out(logits: Tensor, vocabulary: Tensor | None, size: int) -> Tensor:
    """(n, v) logits of a part of the vocabulary as (n, size), with -inf for what the path cannot say."""
    if vocabulary is None:
        return logits
    return logits.new_full((len(logits), size), float("-inf")).index_copy_(1, vocabulary, logits)
