"""Which finished turns of an interrupted run are still answers to the prompts that there are now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdraft.data.prompts import INVENTED, Prompt
from selfdraft.tracking.atomic import append_whole, as_json, write_bytes_atomic
from selfdraft.tracking.lines import LEFT_OUT, refuse_malformed
from selfdraft.tracking.records import RecordFile, key, record_path

History = list[tuple[str, str]]  # (role, text) of a conversation so far
STALE = "stale"  # where lines go that answer other prompts: `prompts.stale.jsonl`


@dataclass(frozen=True)
class Resumed:
    """How many prompts have finished turns that count, and how many turns were answers to other prompts."""

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
    """Leave only those lines in `folder`/`name`.jsonl that answer these prompts; the others move to `name`.stale.jsonl.

    A turn counts as finished if its conversation up to there encodes to the very ids that were answered. So a turn is
    decoded again when its text, an earlier turn, the chat template or the tokenizer has changed; and a prompt that is
    no longer there is not counted. Only rank 0 calls it, while no process reads or appends.

    Args:
        encode: ids of a conversation that ends with the user's turn.
        answer: the text with which a conversation went on after a line.
        name: see `record_path`.

    Raises:
        UserError: a line lacks what it must hold, or the disk does not take the new file.
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
    """Return the lines of this prompt's first turns, up to the first turn that they do not answer."""
    history: History = []
    current = []
    for turn, text in enumerate(prompt.turns):
        line = finished.get((prompt.id, turn))
        # A turn that was left out for its length is judged anew: that takes no decoding.
        if line is None or LEFT_OUT in line or line["category"] != prompt.category:
            break
        history.append(("user", text))
        # The model wrote an invented prompt itself; its id holds the seed that it was drawn with.
        if prompt.category != INVENTED and list(encode(history)) != line["prompt_ids"]:
            break
        history.append(("assistant", answer(line)))
        current.append(line)
    return current
