"""Make a draft path with trained weights: the model's own layers where nothing was trained, and copies where it was.

The model stays as it is. LoRA is merged into the copies, so drafting costs no more than without it.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.models.engines.choice import runs_as_graphs, settled
from selfdraft.models.families.lightcopy import light_copy
from selfdraft.models.forward.driver import Driver
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.feature import Product
from selfdraft.models.paths.sparse import sliced_linear, sparse_path
from selfdraft.models.trained.adapter import FEATURE, JUMP, Adapter


@torch.no_grad()
def adapted_path(target: TargetProtocol, adapter: Adapter, *, reuse: bool = False) -> Path:
    """Return the path that the adapter was trained for; compiled where the target's layers are.

    Args:
        reuse: see `engines.choice.settled`.

    Raises:
        UserError: it was trained for no path, or its weights do not fit this model.
    """
    driver = layered(target)
    settings, stock = adapter.settings, driver.anatomy.layers
    for tensor, what, drafter in (("pseudo", "pseudo tokens", "pseudo_tokens"), ("mask", "gated rows", "fused_jacobi")):
        if tensor in adapter.tensors:
            raise UserError(
                f"drafter.path.adapter: recipe '{adapter.recipe}' trained {what}, and no path to draft through: use "
                f"drafter={drafter}"
            )
    adapter.refuse_beyond(len(stock), driver.vocab_size)
    skip = SkipSet.of(len(stock), settings.get("skip_attention", ()), settings.get("skip_mlp", ()))
    trained: dict[int, nn.Module] = {}
    for index, layer in enumerate(stock):
        lora, own = adapter.under(f"lora.{index}."), adapter.under(f"layer.{index}.")
        if own:
            trained[index] = _replaced(layer, own)
        elif lora:
            trained[index] = _merged(layer, lora, float(settings.get("scale", 1.0)))
    norm, ids = adapter.under("norm."), adapter.tensors.get("vocabulary")
    path_of = partial(
        sparse_path,
        target,
        skip,
        vocabulary=None if ids is None else ids.tolist(),
        norm=_norm(driver, norm) if norm else None,
        feature=_square(driver, adapter, FEATURE),
        jump=_square(driver, adapter, JUMP),
    )
    if driver.compiled and driver.native is None:
        path = path_of(trained={index: nn.Identity() for index in trained})  # a graph has their place
        if runs_as_graphs(driver, settled(target, path, trained=trained, reuse=reuse)):
            return path
    path = path_of(trained={index: driver.driven(layer, index) for index, layer in trained.items()})
    if driver.native is None:
        return path
    return _with_native_head(driver, settled(target, path, trained=trained, reuse=reuse))


def _with_native_head(driver: Driver, path: Path) -> Path:
    """Return the path with its head run by our C++ as well, which reads fewer bytes if the head has few bits."""
    assert driver.native is not None
    if path.vocabulary is None:
        return path
    try:
        head = driver.native.product(sliced_linear(driver.anatomy.head, rows=path.vocabulary))
    except UserError:  # its inputs do not come in sixteens
        return path
    return replace(path, head=head)


def _norm(driver: Driver, tensors: dict[str, Tensor]) -> nn.Module:
    """Return the trained final norm; run by our C++ if the layers are."""
    trained = _replaced(driver.anatomy.norm, tensors)
    native = None if driver.native is None else driver.native.norm(trained)
    return native or driver.fastest(trained)


def _square(target: Driver, adapter: Adapter, name: str) -> Product | None:
    """Return a trained (C, C) weight as a map from hidden states to hidden states; None if there is none."""
    weight, width = adapter.tensors.get(name), target.model.config.hidden_size
    if weight is None:
        return None
    if weight.shape != (width, width):
        raise _misfit(name)
    linear = nn.Linear(width, width, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(target.device, target.dtype), requires_grad=False)
    if target.native is not None:
        try:
            return target.native.product(linear)
        except UserError:  # its inputs do not come in sixteens
            pass
    return target.fastest(linear)


def _replaced(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a copy of a module with some of its parameters replaced."""
    new = copy.deepcopy(module)
    own = dict(new.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise _misfit(name)
        own[name].data = tensor.to(own[name])
    return new.requires_grad_(False)


def _merged(layer: nn.Module, lora: dict[str, Tensor], scale: float) -> nn.Module:
    """Return a light copy of a layer with ``scale * B A`` added to copies of some of its matrices."""
    left = {name.rsplit(".", 1)[0] for name in lora}

    def swap(name: str, module: nn.Module) -> nn.Module | None:
        if name not in left:
            return None
        left.discard(name)
        a, b = lora[f"{name}.A"], lora[f"{name}.B"]
        if not isinstance(module, nn.Linear) or module.weight.shape != (b.shape[0], a.shape[1]):
            raise _misfit(name)
        return merged_linear(module, a, b, scale)

    new = light_copy(layer, swap)
    if left:
        raise _misfit(left.pop())
    return new


def merged_linear(linear: nn.Linear, a: Tensor, b: Tensor, scale: float) -> nn.Linear:
    """Return a copy of a matrix W as W + scale * B A, summed in float32."""
    weight = linear.weight.detach()
    more = scale * (b.float() @ a.float()).to(weight.device)
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None, device="meta")
    new.weight = nn.Parameter((weight.float() + more).to(weight.dtype), requires_grad=False)
    if linear.bias is not None:
        new.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return new


def _misfit(name: str) -> UserError:
    return UserError(
        f"drafter.path.adapter: its weights for {name} do not fit this model: it was trained for another one"
    )
