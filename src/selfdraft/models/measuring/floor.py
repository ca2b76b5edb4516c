"""The shortest possible time of a forward: it must at least read its weights and the cache from memory once."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from selfdraft.models.families.parts import matrix
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.weights import BITS, GROUP, SAME

NUMBERS = 1 << 26  # length of the array that is summed: 256 MiB in float32, more than most caches hold


@dataclass(frozen=True)
class Traffic:
    """The bytes that a forward of one row reads at least.

    Attributes:
        weights: bytes of the layers, the final norm and the head. The few rows of the embedding are left out.
        cache: bytes of the context's keys and values, in all layers.
    """

    weights: int
    cache: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.cache


def traffic(target: Target, context: int) -> Traffic:
    """Return what a forward after `context` tokens reads; the cache must be allocated and written (see `prefill`).

    A graph with `target.weights` of few bits reads codes. A matrix that is not stored as codes, because they would
    change its values, is counted as if it were. All experts of a mixture count, although few are read.
    """
    anatomy = target.anatomy
    head = matrix(anatomy.head).weight
    if target.native is not None:
        norms = sum(p.nbytes for layer in anatomy.layers for p in layer.parameters() if p.dim() == 1)
        return Traffic(target.native.nbytes + norms, _of_cache(target, context))
    bits = BITS[target.weights] if target.compiled and target.weights != SAME else None
    modules = (*anatomy.layers, anatomy.norm, anatomy.head)
    parameters = {id(p): p for module in modules for p in module.parameters()}  # a shared one is read once
    weights = 0
    for parameter in parameters.values():
        if bits is None:
            weights += parameter.nbytes
        else:  # the head takes the most bits of the choice
            weights += coded_bytes(parameter, bits[-1] if parameter is head else bits[0])
    return Traffic(weights, _of_cache(target, context))


def _of_cache(target: Target, context: int) -> int:
    slots = target.cache.rows * target.cache.slots
    return round(1e6 * target.cache.megabytes() * context / slots)


def coded_bytes(parameter: torch.Tensor, bits: int) -> int:
    """Return the bytes of a matrix in codes of 4 or 8 bits with their scales; of anything else, its own."""
    if parameter.dim() != 2 or parameter.shape[1] % GROUP:
        return parameter.nbytes
    floats = 2 if bits == 4 else 1  # a group's scale, and with 4 bits its zero
    return parameter.numel() * bits // 8 + parameter.numel() // GROUP * 4 * floats


@torch.inference_mode()
def bandwidth(device: torch.device, numbers: int = NUMBERS, rounds: int = 8) -> float:
    """Return the bytes per second that a sum over an array in float32 reads: the fastest of several."""
    array = torch.ones(numbers, device=device)
    fastest = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        array.sum().item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - begun)
    return array.nbytes / fastest
