"""Run SelfDraft from overrides: in its own process or, much faster, in this one."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from forked import Forked, run_forked
from selfdraft.app.options.schemas import register_schemas
from selfdraft.app.run import run_task
from selfdraft.app.terminal.errors import FULL_ERROR, TERSE
from selfdraft.app.terminal.help import register_help
from selfdraft.drafters.base import Context, Drafter, Step

ErrorLine = Callable[..., str]  # the fixture `error_line`

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
# Two threads that share a busy core wait for each other: a tiny model is then twenty times as slow.
SMOKE = ("experiment=smoke", "hardware.threads=1")
# For tests that need any run at all: two prompts, one of which has two turns. Measuring costs takes a third of a run.
SMALLEST = (*SMOKE, "dataset.limit=2", "decoding.max_new_tokens=4", "drafter.costs=flat")

register_schemas()
register_help(CONF)


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *overrides]


def environment(**extra: str) -> dict[str, str]:
    """This process's, without what a test or a user may have set for error messages and for DDP's ranks."""
    ours = {name: value for name, value in os.environ.items() if name not in (FULL_ERROR, TERSE, "LOCAL_RANK")}
    return {**ours, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", **extra}


def run(*overrides: str, cwd: Path = ROOT, timeout: float = 300, **extra: str) -> subprocess.CompletedProcess[str]:
    """`python run.py <overrides>`, in a process that was forked when its imports were made."""
    return run_forked(ROOT / "run.py", overrides, cwd=cwd, env=environment(**extra), timeout=timeout)


def start(folder: Path, *overrides: str) -> Forked:
    """The same with `folder` as its hydra.run.dir, while it goes on.

    It has a session of its own, as under a terminal: a signal to its group reaches all of it.
    """
    return Forked(ROOT / "run.py", [*overrides, f"hydra.run.dir={folder}"], cwd=ROOT, env=environment())


def wait_until(running: Forked | subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert running.poll() is None, f"it ended too early: {running.communicate()}"
        time.sleep(0.005)


def composed(*overrides: str) -> DictConfig:
    """The task's part of the configuration."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def composed_with_hydra(*overrides: str) -> tuple[DictConfig, DictConfig]:
    """The whole configuration, and the task's part of it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", list(overrides), return_hydra_config=True)
    task = copy.deepcopy(whole)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return whole, task


def run_here(folder: Path, *overrides: str) -> float | None:
    """The same as `run` with `folder` as its hydra.run.dir, in this process; returns the objective."""
    whole, task = composed_with_hydra(*overrides, f"hydra.run.dir='{folder}'")
    with read_write(whole), open_dict(whole):
        whole.hydra.runtime.output_dir = str(folder)
    outer = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(whole)
    try:
        return run_task(task)
    finally:
        HydraConfig.instance().cfg = outer


def said_by(folder: Path, *overrides: str) -> str:
    """`run_here`, for what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run_here(folder, *overrides)
    return out.getvalue()


@dataclass(frozen=True)
class Done:
    """A finished run of an evaluation or a comparison."""

    folder: Path
    said: str
    lines: list[dict[str, Any]]
    result: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, *overrides: str) -> Done:
        """Run it in this process."""
        said = said_by(folder, *overrides)
        return cls(folder, said, read_lines(folder), read_result(folder))


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """prompts.jsonl of a run."""
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a run."""
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def write_prompts(path: Path, *prompts: Mapping[str, Any] | str) -> Path:
    """A JSONL file: a prompt a line, a string being one line as it is."""
    texts = [prompt if isinstance(prompt, str) else json.dumps(prompt) for prompt in prompts]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def tamper(drafter: Drafter, context: Context, step: Step) -> None:
    """Replaces a drafter's `observe` and makes decoding lossy: it changes the last token of the context."""
    context.tokens[-1] = (context.tokens[-1] + 1) % 256


def of_ranks(name: str, ranks: int, folder: Path) -> list[Any]:
    """Run ``tests/<name> RANK FOLDER`` in as many processes at once; return what each wrote to FOLDER/RANK.json."""
    script = ROOT / "tests" / name
    running = [Forked(script, [str(rank), str(folder)], cwd=ROOT, env=environment()) for rank in range(ranks)]
    for each in running:
        _, said = each.communicate()
        assert each.returncode == 0, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
