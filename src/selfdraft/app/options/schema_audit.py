"""Config schema of task=audit: the file of answers, and what is known of the engine that gave them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, choice_name, option
from selfdraft.core.paths import expanded


@dataclass
class AuditConfig(Options):
    """Which answers task=audit checks; see `data.answers` for the file and `decoding.audit` for the verdicts."""

    config_group: ClassVar[str] = "audit"
    name: str = choice_name("answers")
    file: str | None = option(None, help="JSONL file with a prompt and an output on each line; needed")
    max_new_tokens: int | None = option(
        None,
        at_least=1,
        help="the engine's limit of an answer's tokens, for lines without max_new_tokens and finish_reason; null: the "
        "length of the longest answer in the file",
    )
    limit: int | None = option(None, at_least=1, help="check only this many answers, the first ones; null: all")
    tokens: int | None = option(
        None,
        at_least=1,
        help="check only this many first tokens of each answer, to save time; null: all tokens, and that the "
        "answer had to end there",
    )
    stop_ids: list[int] | None = option(
        None,
        at_least=0,
        help="token ids that end answers; null: those of the model and its tokenizer; []: none, as with ignore_eos",
    )
    batch_size: int = option(
        1,
        at_least=1,
        help="number of answers that the engine decoded at once; forwards of so many tokens round differently, "
        "which is then allowed for",
    )

    @property
    def path(self) -> Path:
        """The file.

        Raises:
            UserError: none is given.
        """
        if self.file is None:
            raise UserError("task=audit needs a file of answers: audit.file=answers.jsonl")
        return expanded(self.file, "audit.file")
