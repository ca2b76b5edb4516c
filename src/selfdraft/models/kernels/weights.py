"""Round a model's weights to 8 or 4 bits, and find the codes of weights that were rounded before.

`round_weights` changes a loaded model. From then on it *is* the quantised model, for transformers' own forwards as for
ours, in whatever dtype. So lossless means identical to that model, and certificates need to know nothing of bits. An
engine that reads codes instead of values (see `graph`) reads fewer bytes and computes the same.

Shapes: O outputs and I inputs of a matrix, groups of G = 32 inputs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfdraft.models.families.lightcopy import light_copy
from selfdraft.models.kernels.packing import is_plain

SAME, INT8, INT4 = "same", "int8", "int4"
WEIGHTS = (SAME, INT8, INT4)
BITS = {INT8: (8,), INT4: (4, 8)}  # what a matrix may be stored in; the head takes 8 bits also with int4
GROUP = 32  # inputs that share a scale, as in the Q4_1 and Q8_0 of GGUF files, whose values are kept as they are


@dataclass(frozen=True)
class Codes:
    """A matrix in integers: its values are ``(codes - zeros) * scales``, group by group.

    Attributes:
        bits: 4 for codes from 0 to 15, or 8 for codes from -127 to 127.
        codes: (O, I / G, G) uint8 or int8. scales: (O, I / G, 1) float32. zeros: likewise, or None: no code is shifted.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def values(self) -> Tensor:
        """Return the (O, I) float32 values."""
        shifted = self.codes.float() if self.zeros is None else self.codes.float().sub_(self.zeros)
        return shifted.mul_(self.scales).flatten(1)


def encoded(weight: Tensor, bits: int) -> Codes:
    """Return the codes of a (O, I) matrix, each value rounded to the nearest level of its group.

    With 4 bits, the 16 levels reach from the group's least value to its greatest. With 8 bits, the 255 levels reach as
    far on both sides of zero as the value furthest from it. A matrix of such values is encoded without rounding.

    Raises:
        ValueError: the inputs do not make whole groups.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"{weight.shape[1]} inputs do not make groups of {GROUP}")
    groups = weight.detach().float().unflatten(1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    if bits == 8:
        scales = (torch.maximum(high, -low) / 127).clamp(min=1e-30)
        return Codes(8, (groups / scales).round_().clamp_(-127, 127).to(torch.int8), scales, None)
    scales = ((high - low) / 15).where(high > low, low.abs().clamp(min=1e-30))  # a group of one value: a level of it
    codes = (groups - low).div_(scales).round_().clamp_(0, 15).to(torch.uint8)
    return Codes(4, codes, scales, -low / scales)


@torch.no_grad()
def exactly_encoded(weight: Tensor, weights: str) -> Codes | None:
    """Return a matrix in the fewest bits that keep its values, apart from rounding in float32; None if none do.

    Args:
        weights: one of `WEIGHTS`: which bits may be tried.
    """
    if weight.shape[1] % GROUP:
        return None
    for bits in BITS.get(weights, ()):
        codes = encoded(weight, bits)
        if same_values(codes.values(), weight):
            return codes
    return None


def same_values(values: Tensor, weight: Tensor) -> bool:
    """Return whether these are the values of a matrix, apart from rounding in float32."""
    return float((values - weight).abs().max()) <= 1e-6 * float(weight.abs().max())


@torch.no_grad()
def rounded(module: nn.Module, bits: int) -> nn.Module:
    """Return a light copy of a module whose matrices are rounded; those without whole groups are shared."""

    def swap(_: str, part: nn.Module) -> nn.Module | None:
        if not isinstance(part, nn.Linear) or part.weight.shape[1] % GROUP or not is_plain(part.weight):
            return None
        small = copy.copy(part)  # of its own class: routers return more than a product
        small._parameters = dict(part._parameters)
        small.weight = nn.Parameter(encoded(part.weight, bits).values().to(part.weight), requires_grad=False)
        return small

    return light_copy(module, swap)


@torch.no_grad()
def round_weights(model: PreTrainedModel, weights: str) -> None:
    """Round the matrices of a model in place.

    With `int4` those of the layers get 4 bits, and the head and the embeddings that it shares get 8: their errors would
    reach the logits at once. Norms, biases, matrices without whole groups, and experts that a family keeps together in
    one tensor are left as they are.

    Args:
        weights: one of `WEIGHTS`.
    """
    if weights == SAME:
        return
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.shape[1] % GROUP:
            codes = encoded(module.weight, 8 if module is head else BITS[weights][0])
            module.weight.copy_(codes.values())
