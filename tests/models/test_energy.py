"""Joules from a made-up powercap folder and a made-up NVML."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from selfdraft.models.measuring.energy import EnergyMeter, rapl, shared


def zone(powercap: Path, folder: str, name: str, joules: float, *, wraps_at: float = 1000.0) -> Path:
    """Make a zone as the kernel shows it, and return the file of its counter."""
    made = powercap / folder
    made.mkdir(parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "max_energy_range_uj").write_text(f"{int(wraps_at * 1e6)}\n")
    file = made / "energy_uj"
    advance(file, joules)
    return file


def advance(file: Path, joules: float) -> None:
    file.write_text(f"{int(joules * 1e6)}\n")


def test_packages_and_memory_are_added_and_parts_of_them_are_not(tmp_path: Path) -> None:
    names = ["package-0", "core", "dram", "package-1", "psys"]
    places = ["intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:1", "intel-rapl:1", "intel-rapl:2"]
    files = [zone(tmp_path, place, name, 100.0) for place, name in zip(places, names, strict=True)]
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100.0)  # the first package again
    meter = EnergyMeter(tmp_path)
    with meter() as reading:
        assert reading.joules is None
        for file, joules in zip(files, (101, 110, 102.5, 104, 900), strict=True):
            advance(file, joules)
    assert reading.joules == pytest.approx(1 + 2.5 + 4)
    assert meter.sources == ["package-0", "dram", "package-1"]
    assert meter.not_readable == ""


def test_a_counter_that_begins_again_is_followed(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 998.0, wraps_at=1000.0)
    with EnergyMeter(tmp_path)() as reading:
        advance(file, 3.0)
    assert reading.joules == pytest.approx(5.0)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    with meter() as reading:
        pass
    assert reading.joules is None
    assert meter.sources == []
    assert meter.not_readable == f"RAPL: no counters of processors in {tmp_path}"


def test_counters_that_only_root_may_read_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1.0)
    read_text = Path.read_text

    def refuse(path: Path) -> str:  # permissions do not bind root, who may run the tests
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter = EnergyMeter(tmp_path)
    with meter() as reading:
        pass
    assert reading.joules is None
    assert meter.not_readable == f"RAPL: permission denied: {file}"


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_text("much\n")])
def test_a_counter_that_fails_later_ends_the_measuring(harm, tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1.0)
    meter = EnergyMeter(tmp_path)
    with meter() as reading:
        harm(file)
    assert reading.joules is None
    assert meter.sources == []
    assert meter.not_readable
    with meter() as reading:
        pass
    assert reading.joules is None


def test_an_exception_passes_and_the_next_block_is_measured(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1.0)
    meter = EnergyMeter(tmp_path)
    with pytest.raises(KeyError), meter():
        raise KeyError
    with meter() as reading:
        advance(file, 2.0)
    assert reading.joules == pytest.approx(1.0)


def test_processes_that_share_the_counters_do_not_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1.0)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(OSError, match="several processes share"):
        rapl(tmp_path)


class NVMLError(Exception):
    """What NVML raises."""


def made_up_nvml(millijoules: list[int], *, counts: bool = True) -> SimpleNamespace:
    """Return a library whose GPU `GPU-abc` has used one of these after the other."""
    readings = iter(millijoules)

    def used(handle: str) -> int:
        assert handle == "handle of GPU-abc"
        if not counts:
            raise NVMLError("Not Supported")
        return next(readings)

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
        nvmlDeviceGetTotalEnergyConsumption=used,
    )


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that uses a GPU with the id abc."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="abc"))


def install(monkeypatch: pytest.MonkeyPatch, library: SimpleNamespace | None) -> None:
    def imported(name: str) -> SimpleNamespace:
        assert name == "pynvml"
        if library is None:
            raise ImportError
        return library

    monkeypatch.setattr(importlib, "import_module", imported)


def test_a_gpu_is_added_to_the_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_a_gpu: None) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 10.0)
    install(monkeypatch, made_up_nvml([5000, 6000, 8500]))  # the first reading only tries it
    meter = EnergyMeter(tmp_path)
    with meter() as reading:
        advance(file, 11.0)
    assert reading.joules == pytest.approx(1.0 + 2.5)
    assert meter.sources == ["package-0", "gpu"]


def test_a_gpu_alone_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_a_gpu: None) -> None:
    install(monkeypatch, made_up_nvml([5000, 6000, 8500]))
    meter = EnergyMeter(tmp_path)
    with meter() as reading:
        pass
    assert reading.joules == pytest.approx(2.5)
    assert meter.sources == ["gpu"]
    assert "RAPL: no counters" in meter.not_readable


@pytest.mark.parametrize(
    ("library", "why"),
    [
        (None, "GPU: pynvml is missing (pip install nvidia-ml-py)"),
        (made_up_nvml([], counts=False), "GPU: NVML: Not Supported"),
    ],
)
def test_the_processors_alone_are_not_the_energy_of_a_gpu_s_run(
    library: SimpleNamespace | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_a_gpu: None
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 10.0)
    install(monkeypatch, library)
    meter = EnergyMeter(tmp_path)
    with meter() as reading:
        pass
    assert reading.joules is None
    assert meter.not_readable == why


def test_joules_are_shared_by_time() -> None:
    assert shared(12.0, [1.0, 3.0]) == [3.0, 9.0]
    assert shared(12.0, [0.0, 0.0]) == [6.0, 6.0]
    assert shared(None, [1.0, 3.0]) == [None, None]
    assert shared(12.0, []) == []
