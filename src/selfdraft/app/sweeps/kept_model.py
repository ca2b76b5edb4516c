"""Load a model once for the jobs of a sweep that have it in common.

Jobs are forks of the sweep's process (see jobs.py). If that process has loaded the model before, a job starts with it:
the pages are shared until a job writes to one, which gives the job a copy of that page. So the model that the sweep
keeps stays as it was loaded, whatever a job does with its own, and memory holds the weights once for all jobs.

Only what `ModelConfig.load` returns is kept, on a CPU. Packed matrices and engines are made by every job, because their
threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import logging

import torch
from omegaconf import DictConfig, OmegaConf

from selfdraft.app.options.schema_model import ModelConfig
from selfdraft.app.runs.build import settled
from selfdraft.models.kernels.threads import single_threaded
from selfdraft.models.loading.loading import DTYPES, LoadedModel
from selfdraft.models.loading.offered import offered
from selfdraft.models.measuring.memory import available

log = logging.getLogger(__name__)

TASKS = ("evaluate", "compare", "calibrate", "finetune", "generate", "trace", "profile", "advise")  # load a model
SHARE = 8  # a kept model takes at most this part of the free memory, so that no job lacks it
CPU = torch.device("cpu")


class KeptModel:
    """The model that the process of a sweep keeps for its jobs.

    Attributes:
        config: of the model that is kept, or that could not be; None before the first.
        loaded: the model; None if there is none.
    """

    def __init__(self) -> None:
        self.config: ModelConfig | None = None
        self.loaded: LoadedModel | None = None
        self._before: ModelConfig | None = None

    def prepare(self, job: ModelConfig | None, following: ModelConfig | None) -> None:
        """Load a job's model if another job has it too, in place of the one that was kept.

        An error is left to the job, which then loads the model itself and reports it.

        Args:
            job: the model of the job that starts now; None if it needs none that can be kept.
            following: likewise for the job after it, if that is known. The job before counts as well.
        """
        if job is not None and job != self.config and job in (self._before, following):
            self.config, self.loaded = job, None
            with contextlib.suppress(Exception):
                self.loaded = _loaded(job)
        self._before = job

    def offered_to(self, job: ModelConfig | None) -> contextlib.AbstractContextManager[None]:
        """Return a `with` block for the job's own process, in which loading an equal model takes the one kept, once."""
        if self.loaded is None or job != self.config:
            return contextlib.nullcontext()
        return offered(job, self.loaded)


def model_of(composed: DictConfig) -> ModelConfig | None:
    """Return the model that a job loads; None if it loads none, or not whole and onto the CPU."""
    if OmegaConf.select(composed, "task.name") not in TASKS:
        return None
    hardware = composed.hardware
    if hardware.accelerator != "cpu" or hardware.tensor_parallel:
        return None
    with contextlib.suppress(Exception):  # the job reports what is wrong
        model = OmegaConf.to_object(settled(composed).model)
        return model if isinstance(model, ModelConfig) and not model.placed else None
    return None


def _loaded(config: ModelConfig) -> LoadedModel | None:
    """Load a model, with one thread: a fork would wait for ever for the threads that torch had begun here.

    Returns:
        The model; None if it is too large to keep.
    """
    size = sum(parameter.numel() for parameter in config.outline().parameters()) * DTYPES[config.dtype].itemsize
    if SHARE * size > available(CPU):
        return None
    log.info(f"Loading {config.label} for the jobs that share it")
    with single_threaded():
        return config.load(CPU)
