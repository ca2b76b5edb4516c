"""Linear layers pre-packed for oneDNN: the same numbers, laid out for few-row products on a CPU.

A plain ``F.linear`` re-packs its weight at every call; at the one to sixteen rows of decoding that is a large part of
the cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKABLE = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """Drop-in for one ``nn.Linear`` in inference, or for several with the same input, whose outputs come joined.

    Holds a packed copy beside the shared original weights.

    Attributes:
        plain_rows: products of at most this many rows use the originals. In float32 the plain kernel reads memory as
            fast as it comes for a few rows, and for longer where the output is narrower than the input; in bfloat16
            packing always pays (measured, see experiments/first_numbers).
    """

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.weights = nn.ParameterList(linear.weight for linear in linears)
        self.biases = nn.ParameterList(linear.bias for linear in linears if linear.bias is not None)
        self._plain = [(linear.weight, linear.bias) for linear in linears]  # the same, quicker to reach
        self._widths = [linear.out_features for linear in linears]
        weight = joined([linear.weight for linear in linears])
        narrowing = weight.shape[0] < weight.shape[1]
        self.plain_rows = 0 if weight.dtype != torch.float32 else 11 if narrowing else 3
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        self._bias = joined([linear.bias for linear in linears]).detach() if len(self.biases) else None

    @property
    def weight(self) -> Tensor:
        """(out, in) plain; of several linears, a joined copy."""
        return joined(list(self.weights))

    @property
    def bias(self) -> Tensor | None:
        """(out,) or None."""
        return self._bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), or (…, sum of outs)."""
        if x.shape[:-1].numel() <= self.plain_rows:
            return joined(self._plain_parts(x), dim=-1)
        return self._joined_product(x)

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        """(…, in) to one (…, out) for each linear, without joining what is computed apart."""
        if x.shape[:-1].numel() <= self.plain_rows:
            return self._plain_parts(x)
        return self._joined_product(x).split(self._widths, dim=-1)

    def _plain_parts(self, x: Tensor) -> list[Tensor]:
        return [functional.linear(x, weight, bias) for weight, bias in self._plain]

    def _joined_product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """One tensor of several; of a single one, itself."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def can_pack(*linears: nn.Module) -> bool:
    """Whether packing is possible and wanted: plain linears on the CPU, in a dtype with oneDNN kernels, all alike."""
    return all(
        type(linear) is nn.Linear
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype in PACKABLE
        and torch.backends.mkldnn.is_available()
        and (linear.bias is None) == (linears[0].bias is None)
        for linear in linears
    )
