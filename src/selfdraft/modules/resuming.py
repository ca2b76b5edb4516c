"""Resuming a run: find which finished turns of an interrupted run still answer the current prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdraft.data.prompts import INVENTED, Prompt
from selfdraft.tracking.files.atomic import append_whole, as_json, write_bytes_atomic
from selfdraft.tracking.files.records import RecordFile, key, record_path
from selfdraft.tracking.numbers.lines import LEFT_OUT, refuse_malformed

History = list[tuple[str, str]]  # (role, text) of a conversation so far
STALE = "stale"  # lines that answer other prompts are moved to a file such as `prompts.stale.jsonl`


@dataclass(frozen=True)
class Resumed:
    """Counts of an interrupted run's finished turns.

    Attributes:
        prompts: number of current prompts with finished turns.
        stale: number of turns that answer other prompts.
    """

    prompts: int
    stale: int


def keep_current(
    folder: Path,
    prompts: Sequence[Prompt],
    encode: Callable[[History], Sequence[int]],
    answer: Callable[[Mapping[str, Any]], str],
    *,
    name: str,
) -> Resumed:
    """Keep only the lines of `folder`/`name`.jsonl that answer these prompts; move the others to `name`.stale.jsonl.

    A turn counts as finished if its conversation up to that turn encodes to exactly the ids that were answered. So a
    turn is decoded again when its text, an earlier turn, the chat template or the tokenizer has changed; and a prompt
    that no longer exists is not counted. Only rank 0 calls it, while no process reads or appends.

    Args:
        encode: returns the token ids of a conversation that ends with the user's turn.
        answer: returns the text with which a conversation continued after a line.
        name: see `record_path`.

    Raises:
        UserError: a line lacks a required entry. OSError: the disk does not take the new file.
    """
    record = RecordFile(record_path(folder, name=name))
    lines = record.read()
    refuse_malformed(lines, folder, name=name)
    finished = {key(line): line for line in lines}
    current: list[Mapping[str, Any]] = []
    for prompt in prompts:
        current += _answers_to(prompt, finished, encode, answer)
    kept = {key(line) for line in current}
    stale = [line for line in lines if key(line) not in kept and LEFT_OUT not in line]
    if len(kept) < len(lines):
        if stale:
            append_whole(record_path(folder, name=f"{name}.{STALE}"), b"".join(map(as_json, stale)))
        write_bytes_atomic(record.path, b"".join(as_json(line) for line in lines if key(line) in kept))
    return Resumed(len({line["id"] for line in current}), len(stale))


def _answers_to(
    prompt: Prompt,
    finished: Mapping[tuple[str, int], Mapping[str, Any]],
    encode: Callable[[History], Sequence[int]],
    answer: Callable[[Mapping[str, Any]], str],
) -> list[Mapping[str, Any]]:
    """Return the lines of this prompt's turns, up to the first turn that has no valid line."""
    history: History = list(prompt.history)
    current = []
    for turn, text in enumerate(prompt.turns):
        line = finished.get((prompt.id, turn))
        # A turn that was left out for its length is checked again, which takes no decoding.
        if line is None or LEFT_OUT in line or line["category"] != prompt.category:
            break
        history.append(("user", text))
        # The model wrote an invented prompt itself, so there are no ids to compare; its id holds the seed it came from.
        if prompt.category != INVENTED and list(encode(history)) != line["prompt_ids"]:
            break
        history.append(("assistant", answer(line)))
        current.append(line)
    return current
