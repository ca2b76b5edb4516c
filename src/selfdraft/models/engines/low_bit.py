"""Draft with a copy of the model in 4 or 8 bits: all layers and the head, but fewer bytes to read."""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

from torch import nn

from selfdraft.models.engines.choice import compile_parts
from selfdraft.models.engines.compiled import CompiledHead
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.kernels.weights import INT4, INT8, rounded


@singledispatch
def low_bit_path(target: TargetProtocol, bits: int) -> Path:
    """Return the path of all layers in `bits` (4 or 8) bits, with a head in 8; see `weights.encoded`.

    Where the target's layers run at once, so do these, and what runs them holds only the codes. Elsewhere they are
    matrices of rounded values in the model's dtype, which take its memory once more and are not faster.
    """
    driver = layered(target)
    anatomy, full, weights = driver.anatomy, driver.full, {4: INT4, 8: INT8}[bits]
    stock, head = [rounded(layer, bits) for layer in anatomy.layers], rounded(anatomy.head, 8)
    if driver.native is not None:
        path = replace(
            full,
            layers=tuple(map(driver.driven, stock, range(len(stock)))),
            leading=0,
            head=driver.native.product(head),
        )
        compile_parts(driver, [(path.layers, stock, full.types)])
        return path
    if driver.compiled:
        layers: list[nn.Module] = [nn.Identity() for _ in stock]  # the graph has their place
        compile_parts(driver, [(layers, stock, full.types)], weights)
        if tuple(map(id, layers)) in driver.compiled:
            return replace(full, layers=tuple(layers), leading=0, head=CompiledHead(head, weights))
    return replace(
        full, layers=tuple(map(driver.driven, stock, range(len(stock)))), leading=0, head=driver.fastest(head)
    )
