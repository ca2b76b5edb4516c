"""Compile our C++ on this machine, once for each kind of processor, with the compiler that is installed.

The library is kept in the user's cache folder. Loading it runs it, so it is loaded only if it and its folder belong to
this user and nobody else may write to them.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path

from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line
from selfdraft.core.paths import cache_folder

SOURCES = ("layers.cpp", "attention.h", "integers.h", "matrix.h", "lanes.h", "team.h")
# No contraction: which products are fused with sums is said in the code, so that it is the same in every loop.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=off")
HOW_TO_INSTALL = "install a C++ compiler (apt install g++, or pip install ziglang)"
SECONDS = 300  # more than a compiler needs on a busy machine: ziglang's, which builds its library first, took 90


@cache
def library() -> ctypes.CDLL:
    """Return the compiled library; compiling it takes some seconds the first time.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    place = _place()
    if is_built():
        with suppress(OSError):  # a damaged file is made anew
            return ctypes.CDLL(str(place))
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = compiled(Path(folder))
            with suppress(OSError):  # a full disk, a folder that may only be read, …: it is not kept
                if _is_only_ours(place.parent, make=True):
                    kept = place.with_name(f".{os.getpid()}-{place.name}")
                    shutil.copyfile(made, kept)
                    kept.chmod(0o600)
                    made = kept.replace(place)
            return ctypes.CDLL(str(made))  # a deleted file stays mapped
    except OSError as error:
        raise UserError(f"the compiled C++ cannot be used here: {one_line(str(error))}") from None


def is_built() -> bool:
    """Return whether an earlier process has compiled the library.

    Raises:
        UserError: there is no compiler.
    """
    return _is_only_ours(_place().parent) and _is_only_ours(_place())


@cache
def _place() -> Path:
    """Return the file in which the library is kept; its name says what it was made of, by what and for what."""
    digest = hashlib.sha256("\0".join([*compiler(), *FLAGS, _processor()]).encode())
    for name, source in _sources().items():
        digest.update(name.encode() + source)
    return cache_folder() / "native" / f"layers-{digest.hexdigest()[:24]}.so"


def _sources() -> dict[str, bytes]:
    return {name: (resources.files(__package__) / name).read_bytes() for name in SOURCES}


@cache
def compiler() -> tuple[str, ...]:
    """Return the command of a C++ compiler: `CXX`, what is installed, or the one of the package `ziglang`.

    Raises:
        UserError: there is none, or `CXX` cannot be read.
    """
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:  # a quotation mark without its partner
        raise UserError(f"the environment's CXX is no command: {str(error).lower()}") from None
    for command in ([named] if named else []) + [["c++"], ["g++"], ["clang++"]]:
        if found := shutil.which(command[0]):
            return (found, *command[1:])
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    raise UserError(f"there is no C++ compiler: {HOW_TO_INSTALL}")


def has_compiler() -> bool:
    """Return whether there is a C++ compiler."""
    try:
        return bool(compiler())
    except UserError:
        return False


def compiled(folder: Path, *more: str) -> Path:
    """Compile the library in a folder; return its path.

    Args:
        more: flags.

    Raises:
        UserError: see `library`.
    """
    for name, source in _sources().items():
        (folder / name).write_bytes(source)
    made = folder / "layers.so"
    command = [*compiler(), *FLAGS, *more, "-o", str(made), str(folder / SOURCES[0])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"the C++ compiler {command[0]} did not run: {one_line(str(error))}") from None
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
        raise UserError(f"the C++ compiler {command[0]} failed: {one_line(said.strip())}")
    return made


def _processor() -> str:
    """Return what the code is compiled for: the machine's kind and, where the system tells, its instructions."""
    flags = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return f"{platform.machine()} {flags}"


def _is_only_ours(path: Path, make: bool = False) -> bool:
    """Whether a file or folder exists, belongs to this user, and nobody else may write to it."""
    try:
        if make:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.lstat()
    except OSError:
        return False
    own = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return own and not stat.S_ISLNK(found.st_mode)
