"""Store an adapter's matrices in 8 bits, a quarter of their size; they are read back as floats.

32 inputs share a scale. The scales are rounded to float16 first, so the values that are read can be written as codes
again without loss. The native engine multiplies by these codes (see `native.stored`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from selfdraft.models.kernels.weights import GROUP

SCALES = "scales/"  # begins the name of the tensor with a matrix's scales
LARGEST = 127  # of a signed byte, used symmetrically
SMALLEST = 2.0**-14  # the smallest scale: below it, float16 loses digits


def in_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with every float matrix (O, I) as int8, and its (O, I / 32) scales under `scales/<its name>`.

    Matrices whose inputs do not come in groups of 32 stay as they are.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or not tensor.is_floating_point() or tensor.shape[1] % GROUP:
            packed[name] = tensor
            continue
        groups = tensor.detach().float().unflatten(1, (-1, GROUP))
        scales = (groups.abs().amax(-1) / LARGEST).clamp(min=SMALLEST).half()
        codes = (groups / scales.float()[..., None]).round().clamp(-LARGEST, LARGEST)
        packed[name], packed[SCALES + name] = codes.flatten(1).to(torch.int8), scales
    return packed


def in_floats(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `in_eight_bits` was given, rounded to 8 bits; tensors without scales stay as they are.

    Raises:
        ValueError: scales without an int8 matrix that they fit.
    """
    found = {name: tensor for name, tensor in packed.items() if not name.startswith(SCALES)}
    for name, scales in packed.items():
        if not name.startswith(SCALES):
            continue
        matrix = found.get(name.removeprefix(SCALES))
        rows, groups = scales.shape if scales.dim() == 2 else (0, 0)
        if matrix is None or matrix.dtype != torch.int8 or matrix.shape != (rows, groups * GROUP):
            raise ValueError(f"its tensor {name!r:.80} fits no 8-bit matrix")
        values = matrix.float().unflatten(1, (-1, GROUP)) * scales.float()[..., None]
        found[name.removeprefix(SCALES)] = values.flatten(1)
    return found
