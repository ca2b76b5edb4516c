"""Which layers of a target are compiled: all of them, and those of paths that a drafter runs for long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line
from selfdraft.models.compiled import CompiledHead, CompiledLayers
from selfdraft.models.driver import Driver
from selfdraft.models.graph import HOW_TO_INSTALL
from selfdraft.models.layered import layered
from selfdraft.models.packing import PackedLinear
from selfdraft.models.path import Path
from selfdraft.models.protocol import TargetProtocol
from selfdraft.models.sparse import without
from selfdraft.models.target import Target
from selfdraft.models.weights import SAME

# The layers that paths have, the stock layers that they were made of, and their types.
Part = tuple[Sequence[nn.Module], Sequence[nn.Module], Sequence[str]]


def compilable(target: Target) -> bool:
    """Whether layers of this dtype on this device can be compiled."""
    return target.device.type == "cpu" and target.dtype == torch.float32


def compile_layers(target: Target, weights: str = SAME) -> None:
    """Let `target` run all its layers as one graph, and its head as another; parts of the model stay as they are.

    Args:
        weights: see `CompiledLayers`.

    Raises:
        UserError: that is not possible here, with the reason.
    """
    if not compilable(target):
        raise UserError("layers are compiled in float32 on a CPU only")
    if target.attention != "sdpa":
        raise UserError(f"model.attention={target.attention} is for layers that run one by one")
    full = target.full
    with _told_in_one_line():
        graph = CompiledLayers(target, target.anatomy.layers, full.types, weights, of=full.layers)
        head = CompiledHead(target.anatomy.head, weights)
    key = tuple(map(id, full.layers))
    target.compiled[key], target.compiled_head, target.weights = graph, head, weights
    try:
        target.compare_with_stock_forward()
    except UserError:
        del target.compiled[key]
        target.compiled_head = None
        raise
    for linear in target.linears():
        if isinstance(linear, PackedLinear):
            linear.release()  # most runs need no packed copy any more; it is made again where one does


def settled(target: TargetProtocol, path: Path, *, reuse: bool = False) -> Path:
    """Return a path that a drafter will run for long; its layers are compiled if those of the target are.

    Only paths of the model's own sublayers are. A path that a search changes stays as it is, because compiling takes
    seconds.

    Args:
        reuse: whether verification goes on from the states after the path's leading layers. These then are a part of
            their own, and so are the layers after them, the path's and the model's.
    """
    if not getattr(target, "compiled", None) or type(path) is not Path:
        return path
    driver = layered(target)
    full, stock = driver.full, driver.anatomy.layers
    kinds = [kind for index, kind in enumerate(full.types) if index not in path.skip.whole_layers()]
    sparse, cut = without(stock, driver.anatomy, path.skip), path.leading if reuse else 0
    parts: list[Part] = [
        (path.layers[:cut], sparse[:cut], kinds[:cut]),
        (path.layers[cut:], sparse[cut:], kinds[cut:]),
        (full.layers[cut:], stock[cut:], full.types[cut:]),
    ]
    compile_parts(driver, parts)
    return path


def compile_parts(driver: Driver, parts: Sequence[Part], weights: str | None = None) -> None:
    """Compile layers in a row, for the paths that run them; where that fails, they stay as they are.

    Args:
        weights: see `CompiledLayers`; None for the driver's own.
    """
    for layers, stock, types in parts:
        key = tuple(map(id, layers))
        if not key or key in driver.compiled:
            continue
        driver.tell(f"compiling {len(stock)} layers that draft")
        try:
            with _told_in_one_line():
                graph = CompiledLayers(driver, stock, types, weights or driver.weights, of=layers)
        except UserError as reason:
            driver.tell(f"they run one by one: {reason}")
        else:
            driver.compiled[key] = graph


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise UserError(f"OpenVINO, which compiles layers, is not installed: {HOW_TO_INSTALL}") from None
    except Exception as error:  # of transformers, torch or OpenVINO: the family has something that they cannot trace
        said = one_line(str(error))
        raise UserError(f"the layers of this family cannot be compiled ({type(error).__name__}: {said})") from error
