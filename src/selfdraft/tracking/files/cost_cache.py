"""Keep measured costs of forwards in a file, so that a later process need not measure them again.

There is one file for each model on each machine: `costs/<digest>.json` in the cache folder. Its `key` says what was
measured, and its `curves` are the seconds by number of tokens, of full forwards and of the paths that drafters asked
for. A file that cannot be read, or that holds anything else, counts as absent; a place that cannot be written keeps
nothing. Costs that were measured while other programs kept the machine busy are too high, so they are not kept either.
Delete the folder to have everything measured anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch

from selfdraft.core.costs import CostCurve, Costs, Shaped
from selfdraft.core.errors import UserError
from selfdraft.core.json_text import MalformedJSON, parse_json
from selfdraft.core.paths import cache_folder
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters.base import DrafterConfig
from selfdraft.models.forward.path import Path as ModelPath
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.fingerprint import shape_fingerprint
from selfdraft.models.measuring.profiling import costs_on
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.environment import processor

FOLDER = "costs"
REVISION = 2  # raise it when forwards become faster or slower: costs that were kept before are then measured anew
VERSIONS = ("selfdraft", "torch", "transformers", "openvino")  # packages on which the speed of a forward depends
MAX_BYTES = 1_000_000  # of a file that is read
MAX_CURVES = 64  # in a file: paths whose skip sets change with the text would add to it for ever
FULL = "full"  # name of the curve of full forwards
CROWDED = 0.9  # share of all cores in use above which programs wait for each other
FEW_S = 0.05  # seconds of the processors: less than that is within the precision of the system's clocks
OTHERS = 0.1  # share of one core: if other programs use less, they do not count
_WRITING = threading.Lock()  # a temporary file is named by its process, so threads must not write at the same time


class KeyedFile:
    """A file of the cache folder for one model on this machine.

    Attributes:
        key: what its content depends on, as plain values.
        path: the file, named by the digest of the key; None where there is no home folder, and nothing is kept.
    """

    folder: ClassVar[str]

    def __init__(self, key: Mapping[str, Any]) -> None:
        self.key = dict(key)
        self.path: Path | None = None
        with suppress(UserError):
            digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
            self.path = cache_folder() / self.folder / f"{digest}.json"


class CostCache(KeyedFile):
    """The curves that are kept for one model on this machine."""

    folder = FOLDER

    def read(self, name: str) -> CostCurve | None:
        """Return the curve that is kept under `name`; None if there is none that can be used."""
        return self._curves().get(name)

    def write(self, name: str, curve: CostCurve) -> bool:
        """Keep a curve beside those that are there; return whether that was possible."""
        if self.path is None:
            return False
        with _WRITING:
            curves = {other: kept for other, kept in self._curves().items() if other != name}
            for oldest in list(curves)[: max(len(curves) + 1 - MAX_CURVES, 0)]:
                del curves[oldest]
            plain = {other: asdict(kept) for other, kept in {**curves, name: curve}.items()}
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomic(self.path, {"key": self.key, "curves": plain})
            except (OSError, ValueError):  # ValueError: a path that no file system accepts
                return False
        return True

    def _curves(self) -> dict[str, CostCurve]:
        """Return all curves of the file; none if it cannot be read or is not this key's."""
        if self.path is None:
            return {}
        try:
            with self.path.open("rb") as file:
                found = parse_json(file.read(MAX_BYTES).decode("utf-8"))
            if found["key"] != self.key:
                return {}
            return {str(name): _curve(**plain) for name, plain in found["curves"].items()}
        except (OSError, MalformedJSON, ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return {}


def _curve(sizes: list[Any], seconds: list[Any]) -> CostCurve:
    """Return the curve of a file.

    Raises:
        ValueError, TypeError: it is none.
    """
    for value in (*sizes, *seconds):
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise ValueError("sizes and seconds are positive numbers")
    return CostCurve(tuple(sizes), tuple(seconds))


def kept_costs(
    target: Target, drafter: DrafterConfig, measuring: Callable[[Path | None], AbstractContextManager[object]]
) -> Costs:
    """Return the costs of forwards of `target`: those that are kept, others measured when they are first asked for.

    Args:
        drafter: the options of the drafter that asks. Costs of its paths may depend on them.
        measuring: entered while a curve is measured, with the file that will keep it.
    """
    measured, cache = costs_on(target), CostCache(key_of(target))

    def look_up(path: Shaped | None) -> CostCurve:
        name = FULL if path is None else _name(target, path, drafter)
        if name is not None and (kept := cache.read(name)) is not None:
            return kept
        watch = Watch()
        with measuring(cache.path):
            curve = measured.full() if path is None else measured.of(path)
        if name is not None and not watch.crowded:
            cache.write(name, curve)
        return curve

    return Costs(look_up, measured.alike)


def crowded(wall: float, busy: float, own: float, cores: int) -> bool:
    """Return whether other programs have slowed a measurement down: they ran, and no core was free for them.

    Args:
        wall: seconds that it took. busy: seconds of all cores in use meanwhile. own: those of this process.
        cores: cores of the machine.
    """
    others = busy - own
    return busy > CROWDED * cores * wall and others > max(OTHERS * wall, FEW_S)


class Watch:
    """Notices whether other programs have slowed down what was done since it was made."""

    def __init__(self) -> None:
        self._begun = _clocks()

    @property
    def crowded(self) -> bool:
        """Return whether they have; see the function of that name."""
        wall, busy, own = (now - then for now, then in zip(_clocks(), self._begun, strict=True))
        return crowded(wall, busy, own, psutil.cpu_count() or 1)


def _clocks() -> tuple[float, float, float]:
    """Return the seconds so far: of the clock, of all cores in use, and of those of this process."""
    times = psutil.cpu_times()._asdict()
    unused = ("idle", "iowait", "guest", "guest_nice")  # the last two are in `user` and `nice` already
    busy = sum(seconds for name, seconds in times.items() if name not in unused)
    return time.perf_counter(), busy, time.process_time()


def key_of(target: Target) -> dict[str, Any]:
    """Return what the costs of forwards of `target` depend on: model, dtype, engine, threads, machine and versions."""
    return {
        "revision": REVISION,
        "model": shape_fingerprint(target.model),
        "dtype": str(target.dtype).removeprefix("torch."),
        "engine": "native" if target.native else "compiled" if target.compiled else "eager",
        "weights": target.weights,
        "packed": target.packed,
        "attention": target.attention,
        **machine_key(target.device),
    }


def machine_key(device: torch.device) -> dict[str, Any]:
    """Return what the speed of a forward depends on besides the model: threads, processor or GPU, and versions."""
    versions = {}
    for package in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions,
    }


def _name(target: Target, path: Shaped, drafter: DrafterConfig) -> str | None:
    """Return the name of a path's curve: the drafter's options, the path's shape, and which parts of it are graphs.

    Returns:
        The name; None if the shape holds something whose text may change from process to process.
    """
    assert isinstance(path, ModelPath)
    shape = _plain(path.shape)
    graphs = [graph is not None for graph in path.graphs(target)]
    return None if shape is None else json.dumps([asdict(drafter), shape, graphs], sort_keys=True, default=str)


def _plain(value: object) -> str | None:
    """Return a part of a shape as text that is the same in every process; None if it has none."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, SkipSet):
        return f"skip {sorted(value.attention)} {sorted(value.mlp)}"
    if isinstance(value, tuple):
        parts = [_plain(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else None
