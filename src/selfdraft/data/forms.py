"""The forms in which a record of a file or table holds a prompt: turns, a text, a conversation, an instruction.

| key | form |
|---|---|
| `turns` | a list of strings, the user's messages (Spec-Bench, MT-bench) |
| `prompt` | a string |
| `messages` | OpenAI's list of `{role, content}` |
| `conversations` | ShareGPT's list of `{from, value}` |
| `instruction` | Alpaca's string, with an `input` that may be empty |

A conversation's last answer is left out, because the model is to write it. The user's last messages are then the turns,
and everything before them is the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import lone_surrogate
from selfdraft.core.messages import warn
from selfdraft.data.json_file import Located, kind_of
from selfdraft.data.prompts import UNCATEGORIZED, Prompt

KEYS = ("turns", "prompt", "messages", "conversations", "instruction")  # the first one that a record has is read
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
MAX_KEYS_NAMED = 8
MAX_NAME = 40  # characters of a key or role that are shown
# Keys that hold the prompt in files of other schemas, the most likely first; and keys that never hold it.
LIKELY = ("question", "query", "problem", "input", "text", "content")
NEVER = ("id", "question_id", "category", "answer", "output", "response")

Talk = tuple[tuple[tuple[str, str], ...], tuple[str, ...]]
"""The (role, text) pairs before the first turn, and the turns."""


class NothingToAnswer(UserError):
    """A conversation has no message of the user that could be answered."""


def prompts_of(
    records: Iterable[Located], prompt_field: str | None = None, *, is_mt_bench: bool = True
) -> list[Prompt]:
    """Return the prompts of records. Conversations without a message to answer are left out, with a warning line.

    Args:
        prompt_field: key that holds the prompt; None for the keys above.
        is_mt_bench: see `Prompt`.

    Raises:
        UserError: a record has another form, or an id is used twice; the message names file and place.
    """
    found: list[tuple[Located, Prompt]] = []
    left_out: list[Located] = []
    for each in records:
        try:
            history, turns = talk_in(each.record, each.where, prompt_field)
        except NothingToAnswer:
            left_out.append(each)
            continue
        category = category_of(each.record, each.where)
        prompt_id = id_of(each.record, each.number, each.where)
        found.append((each, Prompt(prompt_id, category, turns, history, is_mt_bench=is_mt_bench)))
    if left_out:
        warn(f"left out {len(left_out)} conversations without a user's message to answer, first {left_out[0].where}")
    return with_unique_ids(found)


def with_unique_ids(found: Iterable[tuple[Located, Prompt]]) -> list[Prompt]:
    """Return the prompts of records.

    Raises:
        UserError: two have the same id.
    """
    first_of: dict[str, Located] = {}
    prompts = []
    for place, prompt in found:
        first = first_of.setdefault(prompt.id, place)
        if first is not place:
            where = first.place if first.path == place.path else first.where
            raise UserError(f"{place.where}: the id {prompt.id!r} is already that of {where}; every id must be unique.")
        prompts.append(prompt)
    return prompts


def id_of(record: Mapping[str, Any], number: int, where: str) -> str:
    """Return a record's id: its `question_id` or `id`, otherwise its number in the file."""
    for key in ("question_id", "id"):
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise UserError(f"{where}: `{key}` is a JSON {kind_of(value)}; it must be a whole number or a string.")
        return whole(str(value), key, where)
    return str(number)


def category_of(record: Mapping[str, Any], where: str) -> str:
    """Return a record's `category`; some files leave it out or empty."""
    value = record.get("category")
    if value is None or (isinstance(value, str) and not value.strip()):
        return UNCATEGORIZED
    if not isinstance(value, str):
        raise UserError(f"{where}: `category` is a JSON {kind_of(value)}; it must be a string.")
    return whole(value, "category", where)


def talk_in(record: Mapping[str, Any], where: str, prompt_field: str | None = None) -> Talk:
    """Return the history and the turns that a record holds, in any of the forms.

    Raises:
        NothingToAnswer: it is a conversation without a message of the user to answer.
        UserError: it has none of the forms.
    """
    keys = KEYS if prompt_field is None else (prompt_field,)
    # A row of a table has every column, with null where there is nothing.
    given = [key for key in keys if record.get(key) is not None] or [key for key in keys if key in record]
    if not given:
        raise UserError(f"{where}: {_no_prompt(record, prompt_field)}")
    key = given[0]
    value = record[key]
    if key in ("messages", "conversations") or (key != "turns" and _are_objects(value)):
        return _conversation(value, key, where)
    if key == "instruction" and prompt_field is None:
        value = _instruction(value, record.get("input"), where)
    if isinstance(value, str) and key != "turns":
        value = [value]
    if not are_turns(value) or (key == "prompt" and prompt_field is None and not isinstance(record[key], str)):
        right = "a string or a list of strings, none of them empty"
        if prompt_field is None:
            is_list = key == "turns"
            right = f"{'a list of at least one string, none of them' if is_list else 'a string that is not'} empty"
        raise UserError(f"{where}: `{key}` must be {right}.")
    return (), tuple(whole(text, key, where) for text in value)


def _instruction(text: object, more: object, where: str) -> object:
    """Return Alpaca's instruction with the input that it is about below it."""
    if more is not None and not isinstance(more, str):
        raise UserError(f"{where}: `input` is a JSON {kind_of(more)}; it must be a string, which may be empty.")
    return f"{text}\n\n{more}" if is_text(text) and is_text(more) else text


def _conversation(messages: object, key: str, where: str) -> Talk:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f'{where}: `{key}` must be a list of messages, such as {{"role": "user", "content": …}}.')
    pairs = [
        pair
        for number, message in enumerate(messages, start=1)
        if (pair := _message(message, f"{where}: message {number} of `{key}`")) is not None
    ]
    while pairs and pairs[-1][0] == "assistant":
        pairs.pop()
    turns: list[str] = []
    while pairs and pairs[-1][0] == "user":
        turns.insert(0, pairs.pop()[1])
    if not turns:
        raise NothingToAnswer(f"{where}: `{key}` has no message of the user to answer.")
    return tuple(pairs), tuple(turns)


def _message(message: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    """Return the role and the text of a message; None for an empty system message."""
    role_key, text_key = ("from", "value") if "from" in message else ("role", "content")
    name, text = message.get(role_key), message.get(text_key)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        said = f"`{role_key}` {name:.{MAX_NAME}}" if isinstance(name, str) else f"no text as `{role_key}`"
        raise UserError(f"{where} has {said}; it must be system, user (human) or assistant (gpt).")
    if isinstance(text, list):  # OpenAI's content parts
        if not all(
            isinstance(part, dict) and part.get("type") == "text" and is_text(part.get("text")) for part in text
        ):
            raise UserError(f"{where} has parts that are no text; only conversations of texts can be decoded.")
        text = "".join(part["text"] for part in text)
    if role == "system" and (text is None or text == ""):
        return None
    if not is_text(text):
        raise UserError(f"{where}: `{text_key}` must be a string that is not empty.")
    return role, whole(str(text), text_key, where)


def _no_prompt(record: Mapping[str, Any], prompt_field: str | None) -> str:
    """Describe a record without a prompt: the keys that it has, and the option that names the right one."""
    names = [f"{key if key.isprintable() else ascii(key):.{MAX_NAME}}" for key in record if key]
    more = f" and {len(names) - MAX_KEYS_NAMED} more" if len(names) > MAX_KEYS_NAMED else ""
    found = f"the object has {', '.join(names[:MAX_KEYS_NAMED])}{more}" if names else "the object has no key"
    lacking = f"no prompt: none of the keys {', '.join(KEYS)}" if prompt_field is None else f"no `{prompt_field}`"
    usable = [
        key
        for key, value in record.items()
        if key.isidentifier() and len(key) <= MAX_NAME and (is_text(value) or are_turns(value))
    ]
    best = [key for key in LIKELY if key in usable] + [key for key in usable if key not in NEVER]
    if best:
        return f"{lacking}; {found}. Name the one that holds the prompt, e.g. dataset.prompt_field={best[0]}"
    return f"{lacking}; {found}. Give `turns` (a list of strings) or `prompt` (a string)."


def whole(text: str, key: str, where: str) -> str:
    """Return the text, refusing half a character, which can neither be tokenized nor written to a result file."""
    if half := lone_surrogate(text):
        raise UserError(f"{where}: `{key}` has {half}, one half of a character, without the other; replace it.")
    return text


def is_text(value: object) -> bool:
    """Return whether a value is a string with more than white space."""
    return isinstance(value, str) and bool(value.strip())


def are_turns(value: object) -> bool:
    """Return whether a value is a list of at least one text."""
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def _are_objects(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(item, dict) for item in value)
