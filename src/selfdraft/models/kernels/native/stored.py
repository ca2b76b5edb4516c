"""Store a matrix for our C++: in tiles of 32 outputs, and in as few bits as hold its values exactly.

A forward on a CPU waits for weights from memory, so fewer bits make it faster. Values are never rounded here: a matrix
that was quantised before it was loaded is stored as 4 or 8 bits, any other as bfloat16 or float32.

Shapes: O outputs and I inputs of a matrix, T tiles.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdraft.models.kernels.weights import GROUP, INT4, Codes, exactly_encoded, same_values

TILE = 32  # outputs, as in matrix.h
FLOAT32, BFLOAT16, CODES8, CODES4, INTEGERS8, INTEGERS4 = range(6)  # as in matrix.h
# The inputs whose codes a word of integers has, from its lowest bits on; see `Words` in integers.h.
ORDER8 = [0, 2, 1, 3]
ORDER4 = [0, 4, 2, 6, 1, 5, 3, 7]
SAMPLE = 64  # outputs that are tried first: a matrix that has no codes is then found out at once


class CMatrix(ctypes.Structure):
    """`Matrix` of matrix.h."""

    _fields_ = [
        ("format", c_int64),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("half", c_int64),
        ("data", c_void_p),
        ("scales", c_void_p),
        ("shifts", c_void_p),
        ("bias", c_void_p),
    ]


@dataclass(frozen=True)
class Stored:
    """A matrix in tiles.

    Attributes:
        outputs, inputs: its size. format: how `data` holds a weight, one of those above.
        data: the weights, see matrix.h. scales, shifts: (T, I / 32, 32), of codes only; float16 if
            that keeps the weights, else float32. bias: (O,).
    """

    outputs: int
    inputs: int
    format: int
    data: Tensor
    scales: Tensor | None
    shifts: Tensor | None
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return sum(part.nbytes for part in (self.data, self.scales, self.shifts, self.bias) if part is not None)

    def described(self) -> CMatrix:
        """Return what our C++ takes; it points into this object's tensors."""
        places = [None if p is None else p.data_ptr() for p in (self.data, self.scales, self.shifts, self.bias)]
        half = self.scales is not None and self.scales.dtype == torch.float16
        return CMatrix(self.format, self.outputs, self.inputs, half, *places)


@torch.no_grad()
def stored(weight: Tensor, bias: Tensor | None = None, *, integers: bool = False) -> Stored:
    """Store a (O, I) float32 matrix in 4 or 8 bits, bfloat16 or float32: the first of them that keeps its values.

    Args:
        integers: lay codes out for products in integers; `build.library` says where these are faster.

    Raises:
        ValueError: the inputs do not come in eights.
    """
    outputs, inputs = weight.shape
    if inputs % 8:
        raise ValueError(f"{inputs} inputs do not come in eights")
    weight = weight.detach()
    bias = None if bias is None else bias.detach().float().contiguous()
    codes = None
    if not inputs % GROUP and exactly_encoded(weight[:SAMPLE], INT4) is not None:
        codes = exactly_encoded(weight, INT4)
    if codes is None:
        half = weight.bfloat16()
        if torch.equal(half.float(), weight):
            return Stored(outputs, inputs, BFLOAT16, _tiled(half.view(torch.int16)), None, None, bias)
        return Stored(outputs, inputs, FLOAT32, _tiled(weight), None, None, bias)
    flat, factors = codes.codes.flatten(1), _factors(codes, weight)
    scales, shifts = (None if each is None else _tiled(each) for each in factors)
    if codes.bits == 8:
        if not integers:
            return Stored(outputs, inputs, CODES8, _tiled(flat), scales, None, bias)
        octets = (flat ^ -128).unflatten(1, (-1, 4))[..., ORDER8]
        return Stored(outputs, inputs, INTEGERS8, _tiled(_words(octets)), scales, None, bias)
    eights = flat.unflatten(1, (-1, 8))
    twos = (eights[..., ORDER4] if integers else eights).unflatten(-1, (4, 2))
    words = _words(twos[..., 0] | twos[..., 1] << 4)
    return Stored(outputs, inputs, INTEGERS4 if integers else CODES4, _tiled(words), scales, shifts, bias)


def _factors(codes: Codes, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the (O, I / 32) scales, and shifts if codes have any, in float16 if that keeps the values of a matrix.

    Files of quantised models have them in float16. What is computed again from the values differs by rounding in
    float32, so float16 restores the file's own.
    """
    scales, shifts = codes.scales, None if codes.zeros is None else -codes.zeros * codes.scales
    halves = scales.half(), None if shifts is None else shifts.half()
    values = codes.codes.float().mul_(halves[0].float())
    values = values if halves[1] is None else values.add_(halves[1].float())
    if same_values(values.flatten(1), weight):
        scales, shifts = halves
    return scales.squeeze(-1), None if shifts is None else shifts.squeeze(-1)


def _words(octets: Tensor) -> Tensor:
    """Return (O, n) int32 from (O, n, 4) octets, the first in the lowest bits."""
    return octets.contiguous().view(torch.int32).squeeze(-1)


def _tiled(rows: Tensor) -> Tensor:
    """Return (T, n, 32) from (O, n), padded with zeros."""
    padding = -len(rows) % TILE
    if padding:
        rows = torch.cat([rows, rows.new_zeros(padding, rows.shape[1])])
    return rows.unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()
