"""A launcher around another one (submitit's, Ray's, joblib's, Hydra's own), so that its sweeps can be gone on with.

Jobs get folders that are named by what differs between them, and those that have finished are not launched again, as
under our own launcher (launcher.py). `SweepCallback` puts it around whatever `hydra/launcher` names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from selfdraft.app.sweeps.launcher import BY_NUMBER
from selfdraft.app.sweeps.sweep_index import SweepIndex, folder_name, identity_of, varying_keys
from selfdraft.core.errors import UserError

log = logging.getLogger(__name__)


def complete_ray(launcher: DictConfig) -> None:
    """Set options of Ray's launcher that the user has left open, in place; do nothing with another launcher.

    - What jobs print is not shown. Ray would mix the lines of all jobs; each job has its own in `run.log`.
    - Ray's launcher asks for a small object store, and Ray refuses that for a cluster which runs already.
    """
    if not launcher._target_.endswith(".RayLauncher"):
        return
    init = launcher.ray.init
    init.setdefault("log_to_driver", False)
    if init.get("address") is not None:
        init.setdefault("object_store_memory", None)


class ResumingLauncher(Launcher):
    """Names the folders of jobs, and passes on to another launcher those that have not finished."""

    def __init__(self, inner: DictConfig) -> None:
        """Prepare it; `inner` is the configuration of the other launcher."""
        self.inner_config = inner

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the other launcher, which shall see its own options in `hydra.launcher`."""
        self.context, self.config = hydra_context, config
        with read_write(config), open_dict(config):
            config.hydra.launcher = self.inner_config
            complete_ray(config.hydra.launcher)
        self.inner = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = Path(config.hydra.sweep.dir).absolute()
        settings: Any = OmegaConf.to_container(config.hydra, resolve=False)
        self.names = settings["sweep"]["subdir"] == BY_NUMBER
        parameters = list((settings["sweeper"] or {}).get("params") or {})
        self.varying = varying_keys(settings["overrides"]["task"], parameters)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs, and return all of them in their order.

        Raises:
            UserError: Ray finds no cluster at the address that it was given.
        """
        if not self.names:  # the user names the folders, and only Hydra knows their names before a job runs
            return self.inner.launch(job_overrides, initial_job_idx)
        index = SweepIndex(self.folder)
        found: dict[int, JobReturn] = {}
        todo: dict[int, list[str]] = {}
        for place, overrides in enumerate(job_overrides):
            job, name = self._known(index, overrides)
            if job is not None:
                found[place] = job
            else:
                todo[place] = [*overrides, f"hydra.sweep.subdir='{name}'"]
        if found:
            log.info(f"{len(found)} of {len(job_overrides)} jobs had finished before")
        if todo:
            try:
                ended = self.inner.launch(list(todo.values()), initial_job_idx)
            except ConnectionError as error:  # only from Ray: what jobs raise is kept in their results
                raise UserError(
                    "hydra.launcher.ray.init.address: no Ray cluster answers there; start one with `ray start --head`, "
                    "or leave the address out for a cluster of this machine"
                ) from error
            found |= dict(zip(todo, ended, strict=True))
        return [found[place] for place in sorted(found)]

    def _known(self, index: SweepIndex, overrides: Sequence[str]) -> tuple[JobReturn | None, str]:
        """Return a job as it ended, if it has finished before, and the name of its folder.

        A job is composed, which takes most of a second, only if the name is taken.
        """
        wanted = folder_name(overrides, self.varying)
        if wanted not in index.jobs:
            return None, wanted
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        plain: Any = OmegaConf.to_container(task, resolve=False)
        name = index.place(identity_of(plain), list(overrides), wanted)
        if not index.is_finished(name):
            return None, name
        folder = self.folder / name
        with read_write(config.hydra.runtime), open_dict(config):
            config.hydra.runtime.output_dir = str(folder)
        job = JobReturn(
            overrides=list(overrides),
            cfg=task,
            hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
            working_dir=str(folder),
            task_name=config.hydra.job.name,
            status=JobStatus.COMPLETED,
        )
        job.return_value = None
        with suppress(OSError, ValueError, KeyError):
            job.return_value = json.loads((folder / "result.json").read_text(encoding="utf-8"))["objective"]
        return job, name
