"""Divide a frozen target's layers among the processes of a training, so that no process holds all of them.

torch's FSDP does the work: before a layer runs, the processes gather its weights from all of them, and free them after
it has run. If gradients go through the layer, they are gathered and freed once more in the backward pass. So each
process holds its part of every layer, and one whole layer at a time. Gathering is a collective operation: if one
process runs the layers, all have to, equally often and in the same order, or it waits for the others for ever.

A trainable copy of a layer with a LoRA shares the layer's frozen weights (see `light_copy`). It therefore runs within
the divided layer (see `DividedLayer`); the LoRA itself is whole in each process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from selfdraft.models.families.rotary import Rotary
from selfdraft.models.forward.target import Target


class DividedLayer(nn.Module):
    """Runs a layer whose weights are divided, or a copy of it that shares them.

    FSDP's hooks are around this module. So the weights are whole for everything that runs in it, and again for its
    backward pass.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Take the layer; `shard_layers` divides its weights."""
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, *, run: Callable[..., Any] | None = None, **named: Any) -> Any:
        """Return what the layer returns for (B, N, C) states, or what `run` does in its place."""
        run = run or self.layer
        if torch.is_grad_enabled() and torch.is_autocast_enabled(hidden.device.type):
            # Autocast makes a narrow copy of every weight, which autograd would keep, whole, until the backward pass.
            return checkpoint(partial(run, **named), hidden, use_reentrant=False)
        return run(hidden, **named)


def shard_layers(target: Target, device: torch.device) -> None:
    """Leave each process its part of every layer, on its device; what is outside the layers moves there whole.

    Each layer goes to the device by itself and is divided there, so that a device never holds all of them. Copies of
    layers have to be made before, while the weights are whole. The full path then consists of `DividedLayer`s.

    Args:
        target: has unpacked weights, none of which are trained. device: of this process.
    """
    _move_the_rest(target, device)
    # DDP reduces gradients during the backward pass, not in the same order in all processes. A group of its own keeps
    # the gathering, whose order is the same everywhere, apart from that.
    mesh = DeviceMesh.from_group(dist.new_group(), device.type)
    layers = tuple(DividedLayer(layer) for layer in target.full.layers)
    for layer in layers:
        # Each layer is the root of its own tree, and FSDP would keep the gathered weights of roots.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    target.full = replace(target.full, layers=layers)
    if target.device != device:
        target.device = device
        target.rotary = Rotary(target.model, target.anatomy)  # the old one has tables on the old device


def leave_divided_weights_alone(module: nn.Module) -> None:
    """Let DDP, which is about to wrap a module, neither compare nor broadcast those weights of it that are divided."""
    divided = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, divided)


def _move_the_rest(target: Target, device: torch.device) -> None:
    """Move the parts of the model that are in no layer, such as embeddings, norm and head, to a device."""
    stock: nn.Module = target.model
    within = {part for layer in target.anatomy.layers for part in layer.modules()}
    for module in stock.modules():
        if module in within:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
