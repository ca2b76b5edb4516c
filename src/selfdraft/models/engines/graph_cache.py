"""Keep converted graphs in files, so that the next process need not trace and convert the model again.

Tracing and converting take seconds, and their outcome depends on the weights only in the constants that hold them. So a
file has no weights, but a named input in the place of each. When it is read, the tensor of that name in the loaded
model becomes the constant, in shared memory. A graph thus never computes with the weights of another model.

A file is data: OpenVINO's XML and a few small constants, compressed, after a digest of them. A file that is damaged, or
that does not fit the module, counts as absent. A file that cannot be written is not kept. Neither is an error.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from selfdraft.core.errors import UserError
from selfdraft.core.paths import cache_folder
from selfdraft.models.engines.graph_key import SMALL, Indescribable, graph_key, tensors_of

PLACE = "SELFDRAFT_GRAPHS"  # names another folder; set to nothing, no graph is kept
HEADER = b"selfdraft graph\n"
INPUT, WEIGHT = "input:", "weight:"  # begin the names of a graph's inputs
KEPT = 64  # files: those that were used longest ago go when there are more


class KeptGraph:
    """The file of one module's graph, and the weights of the loaded module that are put into the graph."""

    def __init__(self, path: Path, module: nn.Module) -> None:
        self.path = path
        self._tensors = {name: tensor.detach() for name, tensor in tensors_of(module) if tensor.numel()}
        self._names: dict[tuple[int, tuple[int, ...]], str] = {}
        for name, tensor in self._tensors.items():
            self._names.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)

    @classmethod
    def of(cls, module: nn.Module, example: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> KeptGraph | None:
        """Return the place of a module's graph; None if its graph is not kept. See `graph_key` for the arguments."""
        try:
            folder = graph_folder()
            return None if folder is None else cls(folder / f"{graph_key(module, example, shapes)}.graph", module)
        except (Indescribable, UserError):
            return None

    def read(self) -> Any | None:
        """Return the kept graph (an `openvino.Model`) with the module's weights in it; None if none fits."""
        import openvino

        try:
            xml, constants = _unwrapped(self.path.read_bytes())
            stored = openvino.Tensor(np.frombuffer(constants, dtype=np.uint8).copy())
            model = openvino.Core().read_model(xml.decode(), stored)
            filled = self._filled(model)
        except Exception:  # OpenVINO raises many types, and each means that this file is of no use
            return None
        with suppress(OSError):  # a cache that may only be read
            os.utime(self.path)  # the files that were used last are kept longest
        return filled

    def write(self, model: Any) -> Any:
        """Keep a graph that was just converted, if all of its large constants are weights of the module.

        Returns:
            The graph with the same weights, to be compiled.
        """
        from openvino import PartialShape, op

        nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
        large = [(node, _place(node)) for node in nodes if node.data.nbytes > SMALL]
        if not all(place in self._names for _, place in large):
            return model  # it holds what was computed from weights: kept, it would be out of date one day
        for at, given in enumerate(model.get_parameters()):
            given.set_friendly_name(f"{INPUT}{at}")
        weights: dict[str, Any] = {}
        for node, place in large:
            name = self._names[place]
            if name not in weights:
                weights[name] = op.Parameter(node.get_element_type(), PartialShape(list(place[1])))
                weights[name].set_friendly_name(f"{WEIGHT}{name}")
            _connect(node.output(0), weights[name].output(0))
        model.add_parameters(list(weights.values()))
        with suppress(Exception):  # a full disk, a folder of somebody else, …
            _put(self.path, _wrapped(*_serialised(model)))
        return self._filled(model)

    def remove(self) -> None:
        """Delete the file, because its graph does not compute what the module does."""
        with suppress(OSError):
            self.path.unlink()

    def _filled(self, model: Any) -> Any:
        """Return a graph with live weights in the place of the inputs that are named after them.

        Raises:
            KeyError, ValueError: the module has no such weight, or the inputs are others.
        """
        from openvino import Model, op

        inputs = []
        for given in model.get_parameters():
            name = given.get_friendly_name()
            if not name.startswith(WEIGHT):
                inputs.append(given)
                continue
            tensor = self._tensors[name.removeprefix(WEIGHT)]
            if list(tensor.shape) != list(given.get_partial_shape().to_shape()):
                raise ValueError(f"{name} has another shape")
            _connect(given.output(0), op.Constant(tensor.numpy(), shared_memory=True).output(0))
        if [each.get_friendly_name() for each in inputs] != [f"{INPUT}{at}" for at in range(len(inputs))]:
            raise ValueError("its inputs are in another order")
        return Model(model.get_results(), inputs, "kept")


def graph_folder() -> Path | None:
    """Return the folder of kept graphs; None if none are to be kept.

    Raises:
        UserError: its name begins with a home folder that does not exist.
    """
    named = os.environ.get(PLACE)
    if named is not None:
        return Path(named) if named else None
    return cache_folder() / "graphs"


def _place(constant: Any) -> tuple[int, tuple[int, ...]]:
    """Return where a constant's memory is, and its shape."""
    return constant.data.__array_interface__["data"][0], tuple(constant.data.shape)


def _connect(old: Any, new: Any) -> None:
    for user in old.get_target_inputs():
        user.replace_source_output(new)


def _serialised(model: Any) -> tuple[bytes, bytes]:
    """Return a graph as XML, and the bytes of its constants."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        xml, constants = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        openvino.serialize(model, xml, constants)
        return xml.read_bytes(), constants.read_bytes()


def _wrapped(xml: bytes, constants: bytes) -> bytes:
    packed = zlib.compress(len(xml).to_bytes(8, "little") + xml + constants, 1)
    return HEADER + hashlib.sha256(packed).digest() + packed


def _unwrapped(data: bytes) -> tuple[bytes, bytes]:
    """Return the XML and the constants of a file.

    Raises:
        ValueError: it is damaged, or another kind of file.
    """
    digest, packed = data[len(HEADER) : len(HEADER) + 32], data[len(HEADER) + 32 :]
    if not data.startswith(HEADER) or hashlib.sha256(packed).digest() != digest:
        raise ValueError("no graph of ours, or a damaged one")
    whole = zlib.decompress(packed)
    size = int.from_bytes(whole[:8], "little")
    return whole[8 : 8 + size], whole[8 + size :]


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and delete those beside it that were used longest ago.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    finally:
        with suppress(OSError):
            Path(temporary).unlink()
    for old in sorted(path.parent.glob("*.graph"), key=lambda each: each.stat().st_mtime)[:-KEPT]:
        old.unlink()
