"""Read attributes of torch modules with their types; torch itself only knows that each is a tensor or a module."""

from __future__ import annotations

from typing import Protocol, TypeVar, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Kind = TypeVar("Kind")


class Matrix(Protocol):
    """A module that multiplies by a weight: an `nn.Linear`, or a module that replaces one here."""

    @property
    def weight(self) -> Tensor:
        """(out, in)."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """(out,) or None."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return (…, out) from (…, in)."""
        ...


def matrix(module: nn.Module) -> Matrix:
    """Return a module that is known to multiply by a weight, as what it is."""
    return cast("Matrix", module)


def plain_weight(module: nn.Module) -> Tensor:
    """Return the (out, in) weight of a matrix. GPT-2's modules store it transposed."""
    weight = matrix(module).weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def attribute(module: nn.Module, name: str, kind: type[Kind]) -> Kind:
    """Return an attribute of a module.

    Raises:
        TypeError: it is of another kind.
    """
    found = getattr(module, name)
    if not isinstance(found, kind):
        raise TypeError(f"{type(module).__name__}.{name} is a {type(found).__name__}, and no {kind.__name__}")
    return found
