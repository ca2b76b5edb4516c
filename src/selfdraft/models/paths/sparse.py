"""Make sparse paths: a model without some of its sublayers, with narrower MLPs, or with a smaller vocabulary.

These choices combine freely. A path is a list of layer objects around the shared weights. Making one takes
microseconds, because it copies only a few small objects and the slices of weights that it needs. Nothing is compiled,
and neither the model nor other paths are changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import singledispatch

import torch
from torch import Tensor, nn

from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.models.families.anatomy import Anatomy
from selfdraft.models.families.lightcopy import SkippedAttention, SkippedMLP, copy_of
from selfdraft.models.families.parts import matrix, plain_weight
from selfdraft.models.forward.driver import Driver
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.kernels.packing import PackedLinear, can_pack
from selfdraft.models.paths.feature import FeaturePath, Product
from selfdraft.models.paths.jump import JumpPath


@singledispatch
@torch.no_grad()
def sparse_path(
    target: TargetProtocol,
    skip: SkipSet,
    *,
    mlps: Mapping[int, Mapping[str, nn.Module]] | None = None,
    vocabulary: Sequence[int] | None = None,
    trained: Mapping[int, nn.Module] | None = None,
    norm: nn.Module | None = None,
    feature: Product | None = None,
    jump: Product | None = None,
) -> Path:
    """Return the path without the sublayers of `skip`. Any number of paths may exist at once.

    A target whose paths are made differently registers its own function (see `functools.singledispatch`).

    Args:
        mlps: by layer, modules that replace its parts of the same names: its MLP, or what that is made of.
        vocabulary: the only ids that the path may draft; their rows of the head are copied.
        trained: by layer, the module that replaces the whole layer. norm: replaces the final norm.
        feature: see `FeaturePath`. jump: see `JumpPath`; it needs a feature, too.
    """
    driver = layered(target)
    anatomy, full = driver.anatomy, driver.full
    trained, mlps = trained or {}, mlps or {}
    whole = skip.whole_layers()
    types = [kind for index, kind in enumerate(full.types) if index not in whole or anatomy.shares_keys(index)]
    layers = without([trained.get(index, layer) for index, layer in enumerate(full.layers)], anatomy, skip, mlps)
    leading = min([*skip.attention, *skip.mlp, *mlps, *trained], default=len(full.layers))
    head, ids = (None, None) if vocabulary is None else sliced_head(driver, vocabulary)
    path = Path(tuple(layers), tuple(types), skip, leading, head, ids, norm)
    if feature is None:
        return path
    plain = {f.name: getattr(path, f.name) for f in fields(path)}
    if jump is None:
        return FeaturePath(**plain, feature=feature)
    return JumpPath(**plain, feature=feature, jump=jump)


def without(
    layers: Sequence[nn.Module],
    anatomy: Anatomy,
    skip: SkipSet,
    mlps: Mapping[int, Mapping[str, nn.Module]] | None = None,
) -> list[nn.Module]:
    """Return a model's layers without the sublayers of `skip`; those that lose a sublayer are copies.

    Args:
        mlps: see `sparse_path`.
    """
    kept, whole = [], skip.whole_layers()
    for index, layer in enumerate(layers):
        if index in whole and not anatomy.shares_keys(index):
            continue
        replaced: dict[str, nn.Module] = {}
        if index in skip.attention:
            replaced[anatomy.attention_name] = _skipped(SkippedAttention, layer, index, anatomy, anatomy.attention_name)
        if index in skip.mlp:
            replaced[anatomy.mlp_name] = _skipped(SkippedMLP, layer, index, anatomy, anatomy.mlp_name)
        elif mlps and index in mlps:
            replaced |= mlps[index]
        if replaced:
            layer = copy_of(layer)
            layer._modules = {**layer._modules, **replaced}
        kept.append(layer)
    return kept


def _skipped(
    kind: type[SkippedAttention], layer: nn.Module, index: int, anatomy: Anatomy, name: str
) -> SkippedAttention:
    """Return the module that takes the place of a sublayer that is left out.

    Raises:
        UserError: the family's layers have no such sublayer.
    """
    if not name:
        what = "MLP" if kind is SkippedMLP else "attention"
        raise UserError(
            f"the {what} of model family '{anatomy.family}' is no part of its own, so it cannot be left out by itself: "
            "leave out whole layers (drafter=early_exit, or the same numbers in skip_attention and skip_mlp)"
        )
    if anatomy.decoder is None:
        return kind()
    return kind.of(getattr(layer, name), anatomy.returned[index, name])


@singledispatch
def with_vocabulary(path: Path, target: TargetProtocol, vocabulary: Sequence[int]) -> Path:
    """Return `path` with a head for the ids of `vocabulary` only; their rows of the head are copied."""
    head, ids = sliced_head(layered(target), vocabulary)
    return replace(path, head=head, vocabulary=ids)


def sliced_linear(
    linear: nn.Module, rows: Tensor | None = None, columns: Tensor | None = None, *, packed: bool = False
) -> nn.Module:
    """Copy some outputs (`rows`) or inputs (`columns`) of a matrix, packed where that is possible.

    Args:
        linear: an `nn.Linear`, a `PackedLinear` or GPT-2's `Conv1D`.
    """
    weight, bias = plain_weight(linear), matrix(linear).bias
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias.detach()[rows]
    if columns is not None:
        weight = weight[:, columns]
    small = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    small.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        small.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return PackedLinear(small) if packed and can_pack(small) else small


def sliced_head(target: Driver, vocabulary: Sequence[int]) -> tuple[nn.Module, Tensor]:
    """Return the head's rows for `vocabulary`, and the ids of these rows."""
    ids = torch.tensor(sorted(set(vocabulary)), device=matrix(target.head).weight.device)
    return sliced_linear(target.head, rows=ids, packed=target.packed), ids
