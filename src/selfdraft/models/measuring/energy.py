"""Measure the energy that this machine used while a block of code ran, in joules.

It reads the hardware's counters: RAPL for processors (Intel and AMD, Linux only), each package with its cores, and the
memory (`dram`) beside it; NVML for an NVIDIA GPU, if the package nvidia-ml-py is installed. Both count everything that
runs on the machine, not only this process.

Source: the kernel's Documentation/power/powercap; NVML API reference, nvmlDeviceGetTotalEnergyConsumption.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """A counter of energy that only grows, until it begins again at 0.

    Attributes:
        name: the part of the machine: `package-0`, `dram`, `gpu`.
        read: returns joules since an arbitrary moment; raises OSError.
        range: joules after which the counter begins again at 0; 0 if it never does.
    """

    name: str
    read: Callable[[], float]
    range: float = 0.0

    def since(self, before: float) -> float:
        """Return the joules since the counter read `before`; it may have begun again once (minutes at full power)."""
        used = self.read() - before
        return used if used >= 0 else max(used + self.range, 0.0)


@dataclass
class Reading:
    """The energy that a block of code used.

    Attributes:
        joules: sum of all counters; None before the block has ended, and if they cannot be read.
    """

    joules: float | None = None


class EnergyMeter:
    """Measures the joules of blocks of code: ``with meter() as reading: …``, then ``reading.joules``.

    The counters are looked for when the first block begins. The GPU's is taken if this process uses one by then; if
    only that one cannot be read, nothing is measured, because the processor's share alone would mislead.

    Attributes:
        powercap: the folder with the kernel's counters.
        not_readable: why processors, the GPU or both are not counted; empty if all are.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        """Take the folder with the kernel's counters; nothing is read yet."""
        self.powercap = powercap
        self.not_readable = ""
        self._counters: list[Counter] | None = None

    @property
    def sources(self) -> list[str]:
        """Names of the counters that are read; empty if there are none, or none was looked for yet."""
        return [counter.name for counter in self._counters or ()]

    @contextmanager
    def __call__(self) -> Iterator[Reading]:
        """Measure a `with` block. It is measured only if it ends without an exception."""
        if self._counters is None:
            self._counters = self._find()
        reading = Reading()
        before = self._read(lambda counter, _: counter.read())
        yield reading
        if before is not None and (used := self._read(lambda counter, i: counter.since(before[i]))) is not None:
            reading.joules = sum(used)

    def _read(self, how: Callable[[Counter, int], float]) -> list[float] | None:
        """Read all counters; None without counters, or if one fails, after which none is read any more."""
        try:
            return [how(counter, i) for i, counter in enumerate(self._counters or ())] or None
        except (OSError, ValueError) as error:
            self._counters, self.not_readable = [], _reason(error)
            return None

    def _find(self) -> list[Counter]:
        found: list[Counter] = []
        reasons = []
        try:
            found += rapl(self.powercap)
        except (OSError, ValueError) as error:
            reasons.append(f"RAPL: {_reason(error)}")
        if torch.cuda.is_initialized():
            try:
                found.append(nvml())
            except OSError as error:
                found = []
                reasons.append(f"GPU: {_reason(error)}")
        self.not_readable = "; ".join(reasons)
        return found


def rapl(powercap: Path = POWERCAP) -> list[Counter]:
    """Return the counters of the processors' packages and their memory.

    Other zones are left out: `core` and `uncore` are parts of a package, `psys` includes the packages, and
    `intel-rapl-mmio` has the same packages again.

    Raises:
        OSError: there are none, or they may not be read; several processes share them. ValueError: they hold no number.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise OSError("several processes share the machine's counters")
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = (zone / "name").read_text().strip()
        if name.startswith("package") or name == "dram":
            counter = Counter(name, _microjoules(zone / "energy_uj"), _microjoules(zone / "max_energy_range_uj")())
            counter.read()
            found.append(counter)
    if not found:
        raise OSError(f"no counters of processors in {powercap}")
    return found


def _microjoules(file: Path) -> Callable[[], float]:
    return lambda: int(file.read_text()) / 1e6


def nvml() -> Counter:
    """Return the counter of the GPU that this process uses. It advances several times a second.

    Raises:
        OSError: nvidia-ml-py is not installed, or NVML does not count for this GPU.
    """
    try:
        library = importlib.import_module("pynvml")
    except ImportError as error:
        raise OSError("pynvml is missing (pip install nvidia-ml-py)") from error
    try:
        library.nvmlInit()
        # By its id, because NVML numbers all GPUs, and torch only those in CUDA_VISIBLE_DEVICES.
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        gpu = library.nvmlDeviceGetHandleByUUID(f"GPU-{str(uuid).removeprefix('GPU-')}")
    except library.NVMLError as error:
        raise OSError(f"NVML: {error}") from error

    def joules() -> float:
        try:
            return library.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3
        except library.NVMLError as error:
            raise OSError(f"NVML: {error}") from error

    joules()
    return Counter("gpu", joules)


def shared(joules: float | None, seconds: Sequence[float]) -> list[float | None]:
    """Divide the joules of requests that were decoded together among them, in proportion to their shares of the time.

    Args:
        joules: of all; None if not measured.
        seconds: each request's share of the elapsed time.
    """
    total = sum(seconds)
    if joules is None:
        return [None] * len(seconds)
    return [joules * each / total if total > 0 else joules / len(seconds) for each in seconds]


def _reason(error: Exception) -> str:
    """Return why a counter cannot be read, in one short line."""
    if isinstance(error, PermissionError):
        return f"permission denied: {error.filename}"
    return f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
