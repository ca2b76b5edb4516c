"""SelfDraft's one entry point: compose the configuration, run one task, return its objective.

python run.py --help lists what there is to choose.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from selfdraft.app.command_line import quoted_prompt, with_artifact
from selfdraft.app.console import shield_output
from selfdraft.app.errors import one_line_errors
from selfdraft.app.help import print_help, register_help
from selfdraft.app.overrides import checked, with_home
from selfdraft.app.processes import settle_rank
from selfdraft.app.run import run_task
from selfdraft.app.schemas import register_schemas

CONF = Path(__file__).parent / "conf"

register_schemas()
register_help(CONF)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """Run the configured task."""
    return run_task(config)


if __name__ == "__main__":
    shield_output()  # to the very end: a traceback may hold anything, too
    settle_rank()
    with one_line_errors():
        sys.argv[1:] = checked(with_home(with_artifact(quoted_prompt(sys.argv[1:]))), CONF)
        if not print_help(sys.argv[1:], CONF):
            main()
