"""Gated LoRA: trained weights that apply to some tokens of a forward only (Samragh et al. 2025, arXiv 2507.11851).

So tokens that guess can share a forward with tokens that are verified, and the latter keep the target's own logits.

Shapes: B rows of N tokens, m of these B * N get the LoRA, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from selfdraft.models.families.lightcopy import Swap
from selfdraft.models.kernels.packing import PackedLinear, product_by


class Gate:
    """Says which of the B * N rows of the current forward are probes, and so get the LoRA.

    Attributes:
        rows: the probes, as a slice or (m,) indices; None for none.
        total: B * N. A product of another number of rows gets no LoRA: it is an expert's, which sees some tokens only.
    """

    def __init__(self) -> None:
        self.rows: Tensor | slice | None = None
        self.total = 0

    def within(self, x: Tensor) -> Tensor | slice | None:
        """Return the probes among the rows of (…, in); None if these are not the rows of the forward."""
        return self.rows if x.shape[:-1].numel() == self.total else None

    @contextmanager
    def open(self, rows: Tensor, total: int, device: torch.device) -> Iterator[None]:
        """Open the gate to `rows`, given on the host, for one forward. A slice is faster if they are contiguous."""
        self.total = total
        if not len(rows):
            self.rows = None
        elif int(rows[-1] - rows[0]) == len(rows) - 1:
            self.rows = slice(int(rows[0]), int(rows[-1]) + 1)
        else:
            self.rows = rows.to(device)
        try:
            yield
        finally:
            self.rows = None


class GatedLinear(nn.Module):
    """A matrix of the full path, or several joined, which adds its LoRA to the probes' rows only."""

    def __init__(
        self, base: nn.Linear | PackedLinear, loras: Sequence[tuple[Tensor, Tensor] | None], scale: float, gate: Gate
    ) -> None:
        """Wrap a linear.

        Args:
            base: an `nn.Linear`, or a `PackedLinear` of as many linears as there are `loras`.
            loras: for each linear A (r, in) and B (out, r), or None; at least one linear has a LoRA.
        """
        super().__init__()
        self.base: nn.Linear | PackedLinear = base
        self.gate = gate
        like = base.weight
        widths = [w.shape[0] for w in _weights(base)]
        have = [i for i, lora in enumerate(loras) if lora is not None]
        self.which = range(have[0], have[-1] + 1)  # from the first linear with a LoRA to the last: columns are joined
        self.widths = widths[have[0] : have[-1] + 1]
        self.columns = slice(sum(widths[: have[0]]), sum(widths[: have[-1] + 1]))
        parts = [(like.new_zeros(0, like.shape[1]), like.new_zeros(width, 0)) for width in self.widths]
        parts = [loras[i] or empty for i, empty in zip(self.which, parts, strict=True)]
        for (a, b), width in zip(parts, self.widths, strict=True):
            if (b.shape[0], b.shape[1], a.shape[1]) != (width, a.shape[0], like.shape[1]):
                raise ValueError("a LoRA of another matrix")
        down = torch.cat([a.to(like) for a, _ in parts]).detach()  # (sum r, in)
        up = torch.block_diag(*(scale * b.to(like) for _, b in parts)).detach()  # (sum out, sum r)
        # Two small products for every matrix: unpacked, they took half as long as the whole forward.
        self.down, self.up = (product_by(weight, packed=isinstance(base, PackedLinear)) for weight in (down, up))

    @property
    def weight(self) -> Tensor:
        """The (out, in) matrix itself: some layers read its dtype."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, sum of outs) from (B, N, in)."""
        out = self.base(x)
        if (rows := self.gate.within(x)) is not None:
            _add(out[..., self.columns], rows, self._added(x, rows))
        return out

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        """As `PackedLinear.parts`."""
        parts = self.base.parts(x)  # type: ignore[operator]  # only a PackedLinear's users call this
        rows = self.gate.within(x)
        if rows is not None:
            for i, more in zip(self.which, self._added(x, rows).split(self.widths, dim=-1), strict=True):
                _add(parts[i], rows, more)
        return parts

    def _added(self, x: Tensor, rows: Tensor | slice) -> Tensor:
        """Return what the LoRA adds to the probes: (m, sum of outs of `which`)."""
        probes = x.flatten(0, -2)[rows]
        return self.up(self.down(probes))


def gated(tensors: Mapping[str, Tensor], names: Mapping[int, str], scale: float, gate: Gate) -> Swap:
    """Return a `Swap` that wraps the linears with a LoRA, recognised by their weights even where they were fused."""

    def lora(weight: Tensor) -> tuple[Tensor, Tensor] | None:
        name = names.get(id(weight), "")
        return (tensors[f"{name}.A"], tensors[f"{name}.B"]) if f"{name}.A" in tensors else None

    def swap(_: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Linear | PackedLinear):
            return None
        loras = [lora(weight) for weight in _weights(module)]
        return module if loras == [None] * len(loras) else GatedLinear(module, loras, scale, gate)

    return swap


def _weights(linear: nn.Linear | PackedLinear) -> list[Tensor]:
    return list(linear.weights) if isinstance(linear, PackedLinear) else [linear.weight]


def _add(out: Tensor, rows: Tensor | slice, added: Tensor) -> None:
    """Add (m, w) to the given rows of `out` (B, N, w), a view of a product with evenly spaced rows."""
    flat = out.view(-1, out.shape[-1])
    if isinstance(rows, slice):
        flat[rows].add_(added)  # += would copy the sum back onto itself
    else:
        flat.index_add_(0, rows, added)
