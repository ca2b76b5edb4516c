"""The commands that show W&B runs in a terminal and send them, and the mode in which W&B runs.

Nothing slow is imported: the process of a sweep prints these commands, too.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Literal

from selfdraft.core.errors import UserError
from selfdraft.tracking.dashboards.run_label import id_in, sweep_of

Mode = Literal["offline", "online", "disabled"]

_MODES: dict[str, Mode] = {
    "offline": "offline",
    "online": "online",
    "disabled": "disabled",
    "dryrun": "offline",
    "run": "online",
}


def wandb_mode(given: str | None) -> Mode:
    """Return the mode of W&B: `given` (logger.mode), else WANDB_MODE of the environment, else offline.

    Raises:
        UserError: WANDB_MODE is not a mode of W&B that this program supports.
    """
    mode = given or os.environ.get("WANDB_MODE") or "offline"
    if mode not in _MODES:
        raise UserError(f"WANDB_MODE={mode}: choose one of online, offline, disabled")
    return _MODES[mode]


def how_to_look(run_dir: Path, mode: str | None = None) -> str:
    """Return the commands that show and upload the W&B run in `run_dir`; empty without one. `mode` is logger.mode."""
    folder = sweep_of(Path(run_dir)) or Path(run_dir)
    runs = sorted((folder / "wandb").glob(f"*run-*{id_in(Path(run_dir))}"), key=lambda path: path.stat().st_mtime)
    runs = [run for run in runs if run.is_dir() and not run.is_symlink()]
    if not runs:
        return ""
    program, run = _wandb_program(), _from_here(runs[-1])
    look = f"look at it:  {program} leet {run}"
    return look if wandb_mode(mode) == "online" else f"{look}\nsend it:     {program} sync {run}"


def how_to_look_at_all(sweep: Path) -> str:
    """Return the command that lists the W&B runs of a sweep in a terminal; empty if there are none."""
    runs = Path(sweep) / "wandb"
    return f"look at all: {_wandb_program()} leet {_from_here(runs)}" if any(runs.glob("*run-*")) else ""


def _wandb_program() -> str:
    """Return `wandb`, or its full path if the shell would not find the one of this Python's environment."""
    ours = Path(sys.executable).with_name("wandb")
    found = shutil.which("wandb")
    return "wandb" if not ours.exists() or (found and Path(found).samefile(ours)) else _from_here(ours)


def _from_here(path: Path) -> str:
    """Return the path quoted for a shell, relative if it is below the working directory, so that it is easy to copy."""
    path = path.absolute()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
