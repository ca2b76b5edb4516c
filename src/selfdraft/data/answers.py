"""Read a file of answers that some engine gave: per line a prompt, an output, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import lone_surrogate
from selfdraft.data.json_file import kind_of, read_objects

Ended = Literal["stop", "length", "stop string"]
EXAMPLE = '{"prompt_ids": [1, 2], "output_ids": [3, 4], "finish_reason": "stop"}'
# How engines call the three ways to end: OpenAI's, vLLM's and SGLang's names, TGI's, llama-server's, and our own.
ENDED: dict[str, Ended] = {
    "stop": "stop", "eos_token": "stop", "eos": "stop",
    "length": "length", "limit": "length", "positions": "length",
    "stop_sequence": "stop string", "word": "stop string", "stop string": "stop string", "criterion": "stop string",
}  # fmt: skip
MAX_ID = 2**31


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Answer:
    """One answer to audit.

    Attributes:
        where: its file and line, for messages.
        id, turn: identify it in its file.
        prompt: token ids, text, or a conversation. output: token ids, or text.
        ended: by an end of sequence, by the limit of tokens, or at a stop string; None if that is not known.
        max_new_tokens: the limit of its tokens; None if that is not known.
    """

    where: str
    id: str
    turn: int
    prompt: list[int] | str | tuple[Message, ...]
    output: list[int] | str
    ended: Ended | None
    max_new_tokens: int | None


def load_answers(path: Path) -> list[Answer]:
    """Read answers from a UTF-8 file of one JSON object a line, or of one JSON array of objects, in file order.

    Keys that are null count as absent, and other keys are ignored. The id of an object without one is its line number
    (in an array, its item number).

    Raises:
        UserError: the file cannot be read or has no answers; an object has another form; an id is used twice. The
            message names file and line.
    """
    answers: list[Answer] = []
    first_of: dict[tuple[str, int], str] = {}
    for found in read_objects(path):
        record = {key: value for key, value in found.record.items() if value is not None}
        answer = _answer(record, found.number, found.where)
        key = (answer.id, answer.turn)
        if key in first_of:
            raise UserError(
                f"{found.where}: the id {answer.id!r} is already that of {first_of[key]}; every id must be unique, or "
                "have another `turn`"
            )
        first_of[key] = found.place
        answers.append(answer)
    if not answers:
        raise UserError(f"{path} holds no answer; give one JSON object a line, such as {EXAMPLE}")
    return answers


def _answer(record: Mapping[str, Any], number: int, where: str) -> Answer:
    ended = record.get("finish_reason", record.get("ended"))
    if ended is not None and (not isinstance(ended, str) or ended not in ENDED):
        said = repr(ended) if isinstance(ended, str) else f"a JSON {kind_of(ended)}"
        raise UserError(
            f"{where}: `finish_reason` is {said:.60}; an answer that can be audited has stop, length or stop_sequence"
        )
    return Answer(
        where,
        _id(record.get("id", number), where),
        _whole_number(record, "turn", where, at_least=0) or 0,
        _prompt(record, where),
        _output(record, where),
        None if ended is None else ENDED[ended],
        _whole_number(record, "max_new_tokens", where, at_least=1),
    )


def _id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"{where}: `id` is a JSON {kind_of(value)}; it must be a whole number or a string")
    return _text(str(value), "id", where)


def _whole_number(record: Mapping[str, Any], key: str, where: str, *, at_least: int) -> int | None:
    value = record.get(key)
    if value is not None and (type(value) is not int or not at_least <= value < MAX_ID):
        raise UserError(f"{where}: `{key}` must be a whole number of at least {at_least}")
    return value


def _prompt(record: Mapping[str, Any], where: str) -> list[int] | str | tuple[Message, ...]:
    if "prompt_ids" in record:
        ids = _ids(record["prompt_ids"], "prompt_ids", where)
        if not ids:
            raise UserError(f"{where}: `prompt_ids` is empty; a prompt has at least one token")
        return ids
    if "messages" in record:
        return _messages(record["messages"], where)
    if "prompt" not in record:
        raise UserError(f"{where}: no prompt; give `prompt_ids`, `messages` or `prompt`, such as {EXAMPLE}")
    return _text(record["prompt"], "prompt", where)


def _output(record: Mapping[str, Any], where: str) -> list[int] | str:
    if "output_ids" in record:
        return _ids(record["output_ids"], "output_ids", where)
    if "output" not in record:
        raise UserError(f"{where}: no output; give `output_ids` or `output`, such as {EXAMPLE}")
    return _text(record["output"], "output", where)


def _ids(value: Any, key: str, where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < MAX_ID for token in value):
        raise UserError(f"{where}: `{key}` must be a list of token ids, which are whole numbers of 0 or more")
    return value


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    right = 'a list of at least one {"role": "user", "content": "..."}'
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: `messages` must be {right}")
    messages = []
    for message in value:
        role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, dict) else (None, None)
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            content = "".join(str(part.get("text", "")) for part in content)  # OpenAI's content in parts
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(f"{where}: `messages` must be {right}; other content than text cannot be audited")
        messages.append(Message(_text(role, "role", where), _text(content, "content", where)))
    return tuple(messages)


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: `{key}` is a JSON {kind_of(value)}; it must be a string")
    if half := lone_surrogate(value):
        raise UserError(f"{where}: `{key}` has {half}, one half of a character, without the other; replace it")
    return value
