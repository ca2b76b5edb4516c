"""The command `selfdraft`, which `python run.py` is as well: compose the configuration, run one task."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

import selfdraft
from selfdraft.app.options.foresight import foresee
from selfdraft.app.terminal.command_line import flags_first, quoted_prompt, with_artifact
from selfdraft.app.terminal.console import shield_output, tell_in_passing
from selfdraft.app.terminal.errors import one_line_errors
from selfdraft.app.terminal.help import print_help, register_help
from selfdraft.app.terminal.option_index import register_index
from selfdraft.app.terminal.overrides import checked, with_home
from selfdraft.app.terminal.ranks import settle_rank
from selfdraft.core.errors import UserError

PACKAGE = Path(selfdraft.__file__).resolve().parent
CONFIG_PATH = ("--config-path", "-cp")


def main() -> None:
    """Run the task that the command line describes; `--help` lists what there is to choose."""
    shield_output()  # to the very end: a traceback may hold anything, too
    settle_rank()
    with one_line_errors():
        conf = conf_folder()
        register_index(conf)
        register_help(conf)
        given = with_config_path(with_home(with_artifact(quoted_prompt(flags_first(sys.argv[1:])))))
        sys.argv[1:] = checked(given, conf)
        if print_help(sys.argv[1:], conf):
            return
        if foresee(sys.argv[1:], conf):
            # Imported here: torch, transformers and Lightning take seconds, which help and a typo need not wait for.
            tell_in_passing("starting …")
            from selfdraft.app.options.schemas import register_schemas

            register_schemas()
        hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(_task)()


def _task(config: DictConfig) -> float | None:
    """Run the configured task; called by Hydra."""
    from selfdraft.app.run import run_task

    tell_in_passing("")
    return run_task(config)


def conf_folder() -> Path:
    """Return the folder of the configuration's groups: in an installed package, or at the top of a checkout.

    Raises:
        UserError: it is in neither place.
    """
    places = PACKAGE / "conf", PACKAGE.parents[1] / "conf"
    for place in places:
        if (place / "config.yaml").is_file():
            return place
    raise UserError(f"there is no folder conf, neither {places[0]} nor {places[1]}: install SelfDraft anew")


def with_config_path(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a relative `--config-path` made absolute, from the working directory.

    Hydra would look for it beside this file.
    """
    found = list(arguments)
    for at, argument in enumerate(found):
        option, equals, path = argument.partition("=")
        if option not in CONFIG_PATH:
            continue
        at, start = (at, f"{option}=") if equals else (at + 1, "")
        if at < len(found) and not (path := found[at].removeprefix(start)).startswith("pkg://"):
            found[at] = f"{start}{Path(path).absolute()}"
    return found
