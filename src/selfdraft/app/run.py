"""Run the task that a composed configuration names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning import seed_everything

from selfdraft.app.options.typed_config import to_config
from selfdraft.app.runs.build import settled
from selfdraft.app.runs.lifecycle import Run, lifecycle
from selfdraft.app.tasks.advise import advise
from selfdraft.app.tasks.audit import audit
from selfdraft.app.tasks.auto import settle_drafter
from selfdraft.app.tasks.calibrate import calibrate
from selfdraft.app.tasks.compare import compare
from selfdraft.app.tasks.distill_data import distill_data
from selfdraft.app.tasks.doctor import doctor, how_to_ask
from selfdraft.app.tasks.evaluate import evaluate
from selfdraft.app.tasks.export import export
from selfdraft.app.tasks.finetune import finetune
from selfdraft.app.tasks.generate import generate
from selfdraft.app.tasks.profile import profile
from selfdraft.app.tasks.reporting import report
from selfdraft.app.tasks.trace import trace
from selfdraft.app.terminal.errors import JobFailed, explain, fail, is_terse
from selfdraft.app.terminal.signals import INTERRUPTED
from selfdraft.core.errors import Unsupported, UserError
from selfdraft.tracking.files.run_status import RunStatus


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        work: does it and returns the objective (what a sweep maximises), where it has one.
        kept: the results that are kept when it is stopped; empty if it then begins anew.
    """

    work: Callable[[Run], float | None]
    kept: str = ""


TASKS: dict[str, Task] = {
    "evaluate": Task(evaluate, "finished prompts are kept"),
    "compare": Task(compare, "finished prompts are kept"),
    "advise": Task(advise),
    "doctor": Task(doctor),
    "generate": Task(generate),
    "trace": Task(trace),
    "profile": Task(profile),
    "calibrate": Task(calibrate, "what was scored is kept"),
    "distill_data": Task(distill_data, "finished texts are kept"),
    "finetune": Task(finetune, "the last checkpoint is kept"),
    "export": Task(export),
    "audit": Task(audit, "judged answers are kept"),
    "report": Task(report),
}


def run_task(composed: DictConfig) -> float | None:
    """Run the task and return its objective, where it has one."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        composed = settled(composed)
        config = to_config(composed)
        if config.hardware.devices > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError(
                f"hardware.devices={config.hardware.devices} in a sweep needs hydra/launcher=process: a job has to be "
                "a process of its own to start others"
            )
        if config.hardware.shard_base and config.task.name != "finetune":
            raise UserError(
                "hardware.shard_base=true divides the frozen model of task=finetune; to decode, use "
                "hardware.tensor_parallel=true, or leave it out"
            )
        seed_everything(config.seed, verbose=False)  # torch, numpy and Python's random
        task = TASKS[config.task.name]
        with lifecycle(config, composed, folder, kept=task.kept) as run:
            settle_drafter(run)
            return task.work(run)
    except Exception as error:
        # Caught here, before Hydra prints the job's overrides.
        line = explain(error)
        if isinstance(error, Unsupported):
            line = f"{line}; {how_to_ask(HydraConfig.get().overrides.task)}"
        if line is not None and HydraConfig.get().mode == RunMode.MULTIRUN:
            # In a sweep whose launcher shares this process with other jobs, only this job has failed.
            raise JobFailed(line) from error
        if is_terse() and line is not None:
            fail(line)
        raise
    except SystemExit as exited:
        if HydraConfig.get().mode == RunMode.MULTIRUN and exited.code != INTERRUPTED:
            status = RunStatus.read(folder)
            raise JobFailed(status.reason if status else f"exit {exited.code}") from exited
        raise
