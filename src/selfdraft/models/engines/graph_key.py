"""Compute the key under which a converted graph is kept: a digest of all that it depends on, apart from the weights.

That is the code of the modules (the files that define their classes, and the versions of the libraries), the plain
values that the modules and their configurations hold, and the shapes of their tensors. Small tensors are part of the
key with their values, because a conversion may write such values into the graph itself.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig

from selfdraft import __version__
from selfdraft.models.families.hooks import called_otherwise

REVISION = 1  # raise it when graphs are made or kept in another way: files of earlier revisions are then not read
SMALL = 64  # bytes: larger constants of a graph must be weights, or the graph is not kept
PASSING = frozenset({"_name_or_path", "_commit_hash", "transformers_version"})  # where a configuration came from
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, enum.Enum)
OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}  # parameters, children and hooks, which are told apart


class Indescribable(Exception):
    """A module holds something that a key cannot describe, so its graph is not kept."""


def graph_key(module: nn.Module, example: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> str:
    """Return 64 hexadecimal digits that differ wherever the graph of a module may differ.

    Args:
        example: inputs to trace with. shapes: of every input, with -1 for sizes that may be any.

    Raises:
        Indescribable: the graph may depend on something that this function does not know.
        ImportError: OpenVINO is not installed.
    """
    import openvino

    if called_otherwise(module):
        raise Indescribable("it has hooks, or a forward of its own")
    told = _Told()
    text = [
        f"revision {REVISION}, selfdraft {__version__}, {_code('selfdraft.models.engines.graph')}",
        f"torch {torch.__version__}, transformers {transformers.__version__}, openvino {openvino.__version__}",
        f"default dtype {torch.get_default_dtype()}",
        *(f"input {x.dtype} {list(x.shape)} {list(shape)}" for x, shape in zip(example, shapes, strict=True)),
        *told.module(module),
    ]
    return hashlib.sha256("\n".join(text).encode("utf-8", "backslashreplace")).hexdigest()


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that a module and its parts hold, with its dotted name: parameters, buffers, attributes."""
    for name, part in module.named_modules(remove_duplicate=False):
        for attribute, value in {**part._parameters, **part._buffers, **vars(part)}.items():
            if isinstance(value, Tensor):
                yield f"{name}.{attribute}", value


class _Told:
    """Describes modules, and remembers which tensors it has met: modules may share them."""

    def __init__(self) -> None:
        self._met: dict[tuple[int, tuple[int, ...]], int] = {}

    def module(self, module: nn.Module) -> Iterator[str]:
        """Yield a line for each part of a module, and for each thing that a part holds."""
        for name, part in module.named_modules(remove_duplicate=False):
            yield f"module {name!r}: {self._class(type(part))}, parts {list(part._modules)}"
            held = {key: value for key, value in vars(part).items() if key not in OF_EVERY_MODULE}
            for key, value in {**part._parameters, **part._buffers, **held}.items():
                yield f"{key} = {self.value(value)}"

    def value(self, value: Any) -> str:
        """Return what an attribute is.

        Raises:
            Indescribable: it is of a kind that is not known here.
        """
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, PLAIN):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, PreTrainedConfig):
            return (
                f"{self._class(type(value))} {self.value({k: v for k, v in vars(value).items() if k not in PASSING})}"
            )
        if isinstance(value, list | tuple):
            return f"{type(value).__name__} [{', '.join(map(self.value, value))}]"
        if isinstance(value, set | frozenset):
            return f"set [{', '.join(sorted(map(self.value, value)))}]"
        if isinstance(value, dict):
            return "{" + ", ".join(sorted(f"{self.value(k)}: {self.value(v)}" for k, v in value.items())) + "}"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, BuiltinFunctionType):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, FunctionType) and value.__closure__ is None:
            return f"{value.__module__}.{value.__qualname__} {_code(value.__module__)}"
        raise Indescribable(f"a {type(value).__name__}")

    def _tensor(self, tensor: Tensor) -> str:
        """Return a tensor's shape, which earlier one it shares memory with, and its values if they are few."""
        at = self._met.setdefault((tensor.data_ptr(), tuple(tensor.shape)), len(self._met))
        values = tensor.detach().flatten().tolist() if tensor.nbytes <= SMALL else ""
        return f"tensor {at} {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {tensor.device} {values}"

    def _class(self, kind: type) -> str:
        """Return the names of a class and its bases, with digests of the files that define them."""
        bases = [base for base in inspect.getmro(kind) if base not in (object, nn.Module)]
        return " < ".join(f"{base.__module__}.{base.__qualname__} {_code(base.__module__)}" for base in bases)


@lru_cache(maxsize=1000)
def _code(module: str) -> str:
    """Return a digest of the file that defines a Python module.

    Raises:
        Indescribable: there is no such file, as for what was typed into a console.
    """
    if module in sys.builtin_module_names:
        return sys.version
    try:
        path = inspect.getsourcefile(sys.modules[module])
        return hashlib.sha256(Path(path or "").read_bytes()).hexdigest()[:16]
    except (KeyError, TypeError, OSError):
        raise Indescribable(f"{module} has no source file") from None
