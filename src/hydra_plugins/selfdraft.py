"""Makes `hydra/launcher: process` known to Hydra, which takes plugins from the namespace package `hydra_plugins` only.

This folder has no `__init__.py` on purpose: other plugins (a sweeper, say) are installed into the same namespace.
"""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from selfdraft.app import launcher


class ProcessLauncher(launcher.ProcessLauncher):
    """Our launcher under a name that Hydra accepts: it takes classes defined in this namespace, not imported ones."""


@dataclass
class ProcessLauncherConf:
    """The options under `hydra.launcher`."""

    _target_: str = "hydra_plugins.selfdraft.ProcessLauncher"
    command: list[str] = field(default_factory=list)  # what runs a job; empty: this script with this interpreter
    keep_going: bool = True  # after a failed job, go on with the others


ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf, provider="selfdraft")
