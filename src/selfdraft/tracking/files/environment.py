"""Describe where a number was measured: versions, processor, memory and commit, as plain JSON values."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import selfdraft
from selfdraft.tracking.files.entry_point import RUN, entry_point

PACKAGES = (
    "torch",
    "transformers",
    "pytorch-lightning",
    "hydra-core",
    "omegaconf",
    "datasets",
    "wandb",
    "numpy",
    "scipy",
)


def describe_environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what another person needs to know before comparing a number of theirs with ours.

    Args:
        device: where the model runs. The processor is always described, a GPU only if `device` is one.

    Returns:
        `versions`, `platform`, `cpu` (name, cores of the machine, cores this process may use, threads torch uses,
        widest instruction set torch uses), `memory_gb` (10^9 bytes), `gpu` (None on a CPU), `git` (None outside a
        checkout of this package) and `command`.
    """
    return {
        "versions": _versions(),
        "platform": platform.platform(),
        "cpu": {
            "name": processor(),
            "cores": os.cpu_count(),
            "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "memory_gb": _memory_gb(),
        "gpu": _gpu(torch.device(device)),
        "git": _git(),
        "command": _command(sys.argv),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "selfdraft": selfdraft.__version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # e.g. a vendor's build of torch under another name
            continue
    return versions


def processor() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "count": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
    }


def _git() -> dict[str, Any] | None:
    source = Path(selfdraft.__file__).resolve()
    # If the virtual environment is inside some repository, this file is in a checkout that does not track it.
    if _run_git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = _run_git(source.parent, "rev-parse", "HEAD")
    changes = _run_git(source.parent, "status", "--porcelain")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _run_git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()


def _command(arguments: list[str]) -> str:
    """Return the command as it was typed, without this machine's paths of the script and of the home folder."""
    script, *rest = arguments
    start = entry_point(script)
    command = shlex.join([*(["python", Path(script).name] if start == RUN else start.split()), *rest])
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and a user id without a name
        return command
    return command if home == Path(home.anchor) else command.replace(str(home), "~")
