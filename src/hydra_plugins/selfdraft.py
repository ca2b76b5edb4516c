"""Makes `hydra/launcher: process` and `hydra/sweeper: optuna` known to Hydra.

Hydra takes plugins from the namespace package `hydra_plugins` only.

This folder has no `__init__.py` on purpose: other plugins (a sweeper, say) are installed into the same namespace.
"""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from selfdraft.app.sweeps import launcher, optuna_sweeper, resuming_launcher


class ProcessLauncher(launcher.ProcessLauncher):
    """Our launcher under a name that Hydra accepts: it takes classes defined in this namespace, not imported ones."""


@dataclass
class ProcessLauncherConf:
    """The options under `hydra.launcher`."""

    _target_: str = "hydra_plugins.selfdraft.ProcessLauncher"
    command: list[str] = field(default_factory=list)  # what runs a job; empty: this script with this interpreter
    keep_going: bool = True  # after a failed job, go on with the others
    n_jobs: int = 1  # jobs that run at the same time
    pin: bool = True  # with several at once, give each its own share of the cores
    prune_after: int = 0  # end a job after so many prompts if its speedup cannot become the best; 0: end none


class ResumingLauncher(resuming_launcher.ResumingLauncher):
    """What is put around the launchers of others, likewise. Nobody chooses it, so it has no options."""


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """Our sweeper, likewise."""


@dataclass
class OptunaSweeperConf:
    """The options under `hydra.sweeper`."""

    _target_: str = "hydra_plugins.selfdraft.OptunaSweeper"
    sampler: str = "tpe"  # tpe, nsga2 (several objectives) or random
    n_trials: int = 20  # in all, those of an earlier sweep in the same folder included
    # keys of result.json that shall become large, or small if a minus is before them
    objectives: list[str] = field(default_factory=lambda: ["objective"])
    seed: int = 0  # of the sampler
    params: dict[str, str] = field(default_factory=dict)  # what to try, besides what the command says


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="selfdraft")
ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf, provider="selfdraft")
