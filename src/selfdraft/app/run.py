"""Run the task that a composed configuration names."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning import seed_everything

from selfdraft.app.build import to_config
from selfdraft.app.calibrate import calibrate
from selfdraft.app.distill_data import distill_data
from selfdraft.app.errors import explain, fail, is_terse
from selfdraft.app.evaluate import evaluate
from selfdraft.app.finetune import finetune
from selfdraft.app.generate import generate
from selfdraft.app.profile import profile
from selfdraft.app.session import owned
from selfdraft.app.trace import trace
from selfdraft.tracking.run_folder import Mark


def run_task(composed: DictConfig) -> float | None:
    """Run the task and return its objective (what a sweep maximises), where it has one."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = to_config(composed)
        seed_everything(config.seed, verbose=False)  # torch, numpy and Python's random
        if config.task.name == "generate":
            return generate(config)
        if config.task.name == "trace":
            with owned(folder, True, config.task.name):
                Mark(config.task.name).write(folder)
                return trace(config, folder)
        if config.task.name == "calibrate":
            return calibrate(config, composed, folder)
        if config.task.name == "finetune":
            return finetune(config, composed, folder)
        if config.task.name == "distill_data":
            return distill_data(config, composed, folder)
        if config.task.name == "profile":
            with owned(folder, True, config.task.name):
                Mark(config.task.name).write(folder)
                return profile(config, composed, folder)
        return evaluate(config, composed, folder)
    except Exception as error:
        # Caught here, before Hydra prints the job's overrides.
        if is_terse() and (line := explain(error)) is not None:
            fail(line)
        raise
