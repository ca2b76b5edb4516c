"""Config schema of the scores: whether answers are compared with a dataset's references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfdraft.core.options import Options, choice_name, option


@dataclass
class ScoreConfig(Options):
    """Whether answers are compared with the dataset's references."""

    config_group: ClassVar[str] = "score"
    name: str = choice_name("answers")
    enabled: bool = option(True, help="true: compare answers with the references that the dataset has")
    run_code: bool = option(
        False,
        help="true: run the code of answers against their tests (mbpp, humaneval), in processes with limits; these are "
        "no sandbox, so use a machine or container that may be harmed",
    )
    timeout_s: int = option(10, at_least=1, at_most=3600, help="seconds after which the code of an answer is stopped")
