"""A mistake in the configuration is told before anything slow is imported.

What was typed is composed and checked once by the index of all options (see `option_index`). What only the real config
classes know, such as two options that exclude each other, is found when the run begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep

from selfdraft.app.options.typed_config import to_config
from selfdraft.app.terminal.help import CONFIG


def foresee(arguments: Sequence[str], conf: Path) -> bool:
    """Compose and check the configuration of a command, of a sweep that of its first job.

    Arguments that name another folder of configurations are left to Hydra, and so is what Hydra prints by itself.

    Args:
        arguments: of the command line, checked.
        conf: the folder of the groups.

    Returns:
        Whether a run follows, and not only something that Hydra prints.

    Raises:
        UserError: a value is out of its range. HydraException, OmegaConfBaseException: the rest that can be wrong.
    """
    given = get_args_parser().parse_args(list(arguments))
    if given.cfg or given.info or given.hydra_help or given.shell_completion:
        return False
    if given.config_path is not None or given.config_dir is not None:
        return True
    overrides = [_first(override) for override in given.overrides] if given.multirun else given.overrides
    with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
        config = compose(given.config_name or CONFIG, [each for each in overrides if each is not None])
    to_config(config)
    return True


def _first(text: str) -> str | None:
    """Return an override with the first value of its sweep; None if that is no list of values."""
    (override,) = OverridesParser.create().parse_overrides([text])
    if not override.is_sweep_override():
        return text
    value = override.value()
    if not isinstance(value, ChoiceSweep) or value.shuffle or not value.list:
        return None
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"
