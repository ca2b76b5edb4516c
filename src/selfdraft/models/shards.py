"""Divide a frozen target's layers among the processes of a training, so that no process holds all of them.

torch's FSDP does the work: before a layer runs, the processes gather its weights from all of them, and free them after
it has run. So each process holds its part of every layer, and one whole layer at a time. Gathering is a collective
operation: if one process runs the layers, all have to, or it waits for the others for ever.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from selfdraft.models.rotary import Rotary
from selfdraft.models.target import Target


def shard_layers(target: Target, device: torch.device) -> None:
    """Leave each process its part of every layer, on its device; what is outside the layers moves there whole.

    Each layer goes to the device by itself and is divided there, so that a device never holds all of them. Copies of
    layers have to be made before, while the weights are whole.

    Args:
        target: has unpacked weights, none of which are trained. device: of this process.
    """
    _move_the_rest(target, device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in target.full.layers:
        # Each layer is the root of its own tree, and FSDP would keep the gathered weights of roots.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    if target.device != device:
        target.device = device
        target.rotary = Rotary(target.model, target.anatomy)  # the old one has tables on the old device


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
