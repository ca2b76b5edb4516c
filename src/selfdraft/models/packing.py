"""Linear layers pre-packed for oneDNN: the same numbers, laid out for few-row products on a CPU.

A plain ``F.linear`` re-packs its weight at every call; at the one to sixteen rows of decoding that is a large part of
the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKABLE = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """Drop-in for ``nn.Linear`` in inference. Holds a packed copy beside the shared original weight.

    `plain_rows`: products of at most this many rows use the original. In float32 the plain kernel reads memory as fast
    as it comes for a single row, and packing only pays beyond; in bfloat16 packing always pays.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.plain_rows = 3 if linear.weight.dtype == torch.float32 else 0
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        if x.shape[:-1].numel() <= self.plain_rows:
            return functional.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def can_pack(weight: Tensor) -> bool:
    """Whether packing is possible and wanted: a CPU weight, in a dtype with oneDNN kernels."""
    return weight.device.type == "cpu" and weight.dtype in PACKABLE and torch.backends.mkldnn.is_available()
