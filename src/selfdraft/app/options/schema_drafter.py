"""The schema of drafter=auto, which is no drafter: it stands for the best known one until a run begins."""

from __future__ import annotations

from dataclasses import dataclass

from selfdraft.core.options import choice_name, option
from selfdraft.drafters.base import DrafterConfig


@dataclass
class AutoConfig(DrafterConfig):
    """Take the drafter that was found best for this model on this machine; see `app/tasks/auto.py`."""

    name: str = choice_name("auto")
    again: bool = option(
        False,
        help="true: measure anew which drafter is best here (up to a minute), even if task=advise or an earlier "
        "run found one",
    )
