"""Pack the weights of linear layers once, in the layout that oneDNN multiplies by when a product has few rows.

A plain ``F.linear`` on a CPU packs its weight again at every call. At the one to sixteen rows of decoding, that is a
large part of its time. The numbers are the same; the packed copy needs as much memory as the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

UNDECIDED = -1  # for `plain_rows`
_trying = False  # see `unpacked`


def packable(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for a dtype on this processor; bfloat16 needs AVX-512 or AVX-NE-CONVERT."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """Replaces one ``nn.Linear`` in inference, or several with the same input, whose outputs are then joined.

    Holds a packed copy beside the shared original weights, from its first use on (see `unpacked`).

    Attributes:
        plain_rows: products of at most this many rows use the originals. In float32, some processors' plain kernel is
            limited only by reading memory for a few rows, and for more rows if the output is narrower than the input;
            on others it is several times slower (`plain_pays` tries it). In bfloat16 packing always pays (measured, see
            experiments/first_numbers).
    """

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.weights = nn.ParameterList(linear.weight for linear in linears)
        self.biases = nn.ParameterList(linear.bias for linear in linears if linear.bias is not None)
        self._plain = [(linear.weight, linear.bias) for linear in linears]  # the same, quicker to reach
        self._widths = [linear.out_features for linear in linears]
        self._plain_rows = UNDECIDED
        self._packed: Tensor | None = None
        self._bias = joined([linear.bias for linear in linears]).detach() if len(self.biases) else None

    @property
    def weight(self) -> Tensor:
        """The plain (out, in) weight; a joined copy for several linears."""
        return joined(list(self.weights))

    @property
    def bias(self) -> Tensor | None:
        """(out,) or None."""
        return self._bias

    @property
    def plain_rows(self) -> int:
        """See the class."""
        self._decide()
        return self._plain_rows

    @plain_rows.setter
    def plain_rows(self, rows: int) -> None:
        self._plain_rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, out), or (…, sum of outs) for several linears, from (…, in)."""
        if x.shape[:-1].numel() <= self._plain_rows:
            return joined(self._plain_parts(x), dim=-1)
        return self._joined_product(x)

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        """Return one (…, out) for each linear, from (…, in); outputs that are computed separately are not joined."""
        if x.shape[:-1].numel() <= self._plain_rows:
            return self._plain_parts(x)
        return self._joined_product(x).split(self._widths, dim=-1)

    def _plain_parts(self, x: Tensor) -> list[Tensor]:
        return [functional.linear(x, weight, bias) for weight, bias in self._plain]

    def _joined_product(self, x: Tensor) -> Tensor:
        if self._packed is None:
            if _trying or x.shape[:-1].numel() <= self.plain_rows:
                return joined(self._plain_parts(x), dim=-1)
            self.pack()
        assert self._packed is not None
        return packed_product(x, self._packed, self._bias)

    def _decide(self) -> None:
        """Set `plain_rows` at first use: a target that is compiled needs no trial of kernels."""
        if self._plain_rows == UNDECIDED:
            weight, _ = self._plain[0]
            narrowing = sum(self._widths) < weight.shape[1]
            self._plain_rows = 0 if weight.dtype != torch.float32 or not plain_pays() else 11 if narrowing else 3

    def pack(self) -> None:
        """Make the packed copy now, if there is none: otherwise the first product of many rows waits for it."""
        self._decide()
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)

    def release(self) -> None:
        """Give the memory of the packed copy back; the next use makes it anew."""
        self._packed = None


@contextmanager
def unpacked() -> Iterator[None]:
    """Let matrices without a packed copy multiply by their originals meanwhile: a single trial does not pay for one."""
    global _trying
    before, _trying = _trying, True
    try:
        yield
    finally:
        _trying = before


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return (…, out) from (…, in), by a weight that oneDNN has packed."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def product_by(weight: Tensor, *, packed: bool) -> Callable[[Tensor], Tensor]:
    """Return a function from (…, in) to (…, out), by a weight (out, in) that belongs to no module."""
    if not (packed and packable(weight.dtype)):
        return lambda x: functional.linear(x, weight)
    kept = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return lambda x: packed_product(x, kept)


@lru_cache(maxsize=1)
@torch.inference_mode()
def plain_pays(out: int = 3072, inner: int = 576, copies: int = 6, rounds: int = 12) -> bool:
    """Whether float32's plain kernel is the faster one for a single row; tried once per process, with its threads.

    `copies` different weights take turns, more than the caches hold, because a model's weights come from memory too.
    """
    x = torch.full((1, inner), 0.5)
    weights = [torch.full((out, inner), 0.5) for _ in range(copies)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
    plain: list[float] = []
    fast: list[float] = []
    for _ in range(rounds):
        for weight, other in zip(weights, packed, strict=True):
            plain.append(_seconds(partial(functional.linear, x, weight)))
            fast.append(_seconds(partial(packed_product, x, other)))
    return median(plain) < median(fast)


def _seconds(product: Callable[[], Tensor]) -> float:
    begun = time.perf_counter()
    product()
    return time.perf_counter() - begun


def joined(parts: list[Tensor] | tuple[Tensor, ...], dim: int = 0) -> Tensor:
    """Return several tensors as one; a single tensor as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def is_plain(weight: Tensor) -> bool:
    """Return whether a weight is a tensor of its values; others, as torchao has them, bring kernels of their own."""
    return type(weight) in (Tensor, nn.Parameter)


def can_pack(*linears: nn.Module) -> bool:
    """Whether packing is possible and wanted: plain linears on the CPU, in a dtype with oneDNN kernels, all alike."""
    return all(
        type(linear) is nn.Linear
        and is_plain(linear.weight)
        and linear.weight.device.type == "cpu"
        and packable(linear.weight.dtype)
        and (linear.bias is None) == (linears[0].bias is None)
        for linear in linears
    )
