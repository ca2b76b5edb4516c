"""Datasets with a name of their own: each is read as it is published, from the Hub or from a copy on this machine.

A copy is one of the published files, or a folder that has it: a clone of the Hub's repository or of the one on GitHub,
or a folder of `save_to_disk`. Only JSON, JSONL and Parquet are read; nothing in a copy is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from selfdraft.core.errors import UserError
from selfdraft.core.scoring import EXPRESSION, MARK, NUMBER, TESTS, Reference, final_number, last_boxed
from selfdraft.data.files import read_records
from selfdraft.data.forms import id_of, is_text, prompts_of, whole, with_unique_ids
from selfdraft.data.json_file import ROW, Located
from selfdraft.data.prompts import Prompt
from selfdraft.data.tables import load_table, rows_of

SAVED = ("state.json", "dataset_dict.json")  # files by which a folder of `save_to_disk` is known
SUFFIXES = {".json", ".jsonl", ".parquet"}
DEEPEST = 4  # folders below the one that is given in which a published file is looked for
MAX_NAMED = 5  # files that a message names

MATH_INSTRUCTION = r"Put your final answer within \boxed{}."
MBPP_INSTRUCTION = "Answer with the whole function in one Python code block. Your code should pass these tests:"
MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}  # by task_id

# What SPEED-Bench has instead of the prompts that NVIDIA may not pass on.
SPEED_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
SPEED_SUBSETS = ("qualitative", *(f"throughput_{length}" for length in ("1k", "2k", "8k", "16k", "32k")))


@dataclass(frozen=True)
class Origin:
    """Where a published dataset is read from.

    Attributes:
        hub: its name on the Hub; empty if it is not there.
        split: the split to read.
        subset: the configuration to read; None if it has only one.
        revision: branch, tag or commit on the Hub.
        path: a copy on this machine; None for the Hub.
        names: names of its file elsewhere than on the Hub, e.g. on GitHub.
    """

    hub: str
    split: str
    subset: str | None = None
    revision: str | None = None
    path: Path | None = None
    names: tuple[str, ...] = ()

    def records(self) -> Iterator[Located]:
        """Yield the records.

        Raises:
            UserError: they cannot be fetched or read.
        """
        if self.path is None or any((self.path / name).exists() for name in SAVED):
            yield from self._of_table(self.hub if self.path is None else str(self.path))
            return
        for file in self._files_in(self.path) if self.path.is_dir() else [self.path]:
            yield from read_records(file)

    def _of_table(self, name: str) -> Iterator[Located]:
        advice = "give a copy on this machine with dataset.path=<file or folder>"
        table = load_table(name, split=self.split, subset=self.subset, revision=self.revision, advice=advice)
        for number, row in enumerate(rows_of(table, name, *table.column_names), start=1):
            yield Located(Path(name), ROW, number, row, part=self.split)

    def _files_in(self, folder: Path) -> list[Path]:
        """Return the files of the split, in order: those of the subset's folder if there is one."""
        patterns = ["/".join("*" * depth) for depth in range(1, DEEPEST + 1)]
        files = sorted(file for pattern in patterns for file in folder.glob(pattern) if file.suffix in SUFFIXES)
        ours = [file for file in files if self.subset in file.relative_to(folder).parts[:-1]] or files
        found = [file for file in ours if file.stem == self.split or file.stem.startswith(f"{self.split}-")]
        found = found or [file for file in files if file.name in self.names][:1]
        if not found:
            wanted = ", ".join((*(f"{self.split}*{suffix}" for suffix in sorted(SUFFIXES)), *self.names))
            there = ", ".join(str(file.relative_to(folder)) for file in files[:MAX_NAMED]) or "none of these kinds"
            raise UserError(f"{folder} has no file of this dataset ({wanted}); its files are: {there}.")
        return found


def _each(records: Iterable[Located], parse: Callable[[Located], Prompt | None], name: str) -> list[Prompt]:
    """Return the prompts of records of which none is in another layout; `parse` returns None to leave one out."""
    prompts = with_unique_ids((each, prompt) for each in records if (prompt := parse(each)) is not None)
    if not prompts:
        raise UserError(f"dataset={name}: the file holds no prompt of this dataset; give a file as it is published.")
    return prompts


def _text(each: Located, *keys: str) -> str:
    """Return the text of the first of `keys` that a record has."""
    key = next((key for key in keys if each.record.get(key) is not None), keys[0])
    if not is_text(value := each.record.get(key)):
        raise UserError(f"{each.where}: `{key}` must be a string that is not empty, as this dataset is published.")
    return whole(str(value), key, each.where)


def _texts(each: Located, key: str) -> list[str]:
    """Return a list of texts, which may be absent or empty."""
    value = each.record.get(key) or []
    if not isinstance(value, list) or not all(map(is_text, value)):
        raise UserError(f"{each.where}: `{key}` must be a list of strings, as this dataset is published.")
    return [whole(text, key, each.where) for text in value]


def gsm8k(origin: Origin) -> list[Prompt]:
    """Load GSM8K: the question as it is; the reference is the number after `####` in `answer`.

    Raises:
        UserError: see `Origin.records`; or a record is laid out otherwise.
    """

    def parse(each: Located) -> Prompt:
        answer = _text(each, "answer")
        number = final_number(answer)
        if number is None:
            raise UserError(f"{each.where}: `answer` must end with {MARK} and a number, as GSM8K's answers do.")
        name = f"{origin.split}:{each.number}"
        return Prompt(name, "gsm8k", (_text(each, "question"),), reference=Reference(NUMBER, number))

    return _each(origin.records(), parse, "gsm8k")


def math500(origin: Origin) -> list[Prompt]:
    """Load MATH-500: the problem, with a request to box the answer. Other selections of MATH are read as well.

    Raises:
        UserError: see `Origin.records`; or a record is laid out otherwise.
    """

    def parse(each: Located) -> Prompt:
        given = each.record.get("answer")
        answer = _text(each, "answer") if given is not None else last_boxed(_text(each, "solution"))
        if not answer:
            raise UserError(rf"{each.where}: there is no `answer`, and `solution` has no \boxed{{…}}.")
        name = _text(each, "unique_id") if each.record.get("unique_id") is not None else str(each.number)
        turn = f"{_text(each, 'problem')}\n\n{MATH_INSTRUCTION}"
        return Prompt(name, "math500", (turn,), reference=Reference(EXPRESSION, answer))

    return _each(origin.records(), parse, "math500")


def mbpp(origin: Origin) -> list[Prompt]:
    """Load MBPP: the task and its tests, of which the answer has to take the function's name.

    Raises:
        UserError: see `Origin.records`; or a record is laid out otherwise.
    """
    first, last = MBPP_SPLITS[origin.split]

    def parse(each: Located) -> Prompt | None:
        task = each.record.get("task_id")
        if isinstance(task, bool) or not isinstance(task, int):
            raise UserError(f"{each.where}: `task_id` must be a whole number, as MBPP is published.")
        if not first <= task <= last:  # the file on GitHub has all splits
            return None
        tests = "\n".join(_texts(each, "test_list"))
        if not tests:
            raise UserError(f"{each.where}: `test_list` is empty; a task of MBPP has at least one test.")
        before = _texts(each, "test_imports")
        if each.record.get("test_setup_code"):
            before.append(_text(each, "test_setup_code"))
        turn = f"{_text(each, 'text', 'prompt')} {MBPP_INSTRUCTION}\n\n```python\n{tests}\n```"
        return Prompt(f"MBPP/{task}", "mbpp", (turn,), reference=Reference(TESTS, tests, preamble="\n".join(before)))

    return _each(origin.records(), parse, "mbpp")


def mt_bench(origin: Origin) -> list[Prompt]:
    """Load MT-bench's questions of two turns, as on the Hub (`prompt`) or in LMSYS's question.jsonl (`turns`).

    Raises:
        UserError: see `Origin.records`; or a record is laid out otherwise.
    """
    return _each(origin.records(), _question, "mt_bench")


def spec_bench(origin: Origin) -> list[Prompt]:
    """Load Spec-Bench's question.jsonl.

    Raises:
        UserError: see `Origin.records`; or a record is laid out otherwise.
    """
    return _each(origin.records(), _question, "spec_bench")


def _question(each: Located) -> Prompt:
    turns = _texts(each, "turns") or _texts(each, "prompt")
    if not turns:
        raise UserError(f"{each.where}: `turns` must be a list of strings, as this dataset is published.")
    key = "prompt_id" if each.record.get("prompt_id") is not None else "question_id"
    name = id_of({"id": each.record.get(key)}, each.number, each.where)
    return Prompt(name, _text(each, "category"), tuple(turns))


def alpaca(origin: Origin) -> list[Prompt]:
    """Load Alpaca's instructions, each with its input below it. The answers of the dataset are not used.

    Raises:
        UserError: see `Origin.records`; or a record is laid out otherwise.
    """

    def parse(each: Located) -> Prompt:
        instruction, more = _text(each, "instruction"), each.record.get("input")
        turn = f"{instruction}\n\n{_text(each, 'input')}" if more else instruction
        return Prompt(str(each.number), "alpaca", (turn,))

    return _each(origin.records(), parse, "alpaca")


def speed_bench(origin: Origin) -> list[Prompt]:
    """Load SPEED-Bench: `turns` as on the Hub, or `messages` as its preparation writes them.

    Raises:
        UserError: see `Origin.records`; a record is laid out otherwise, or holds a placeholder in place of its prompt.
    """
    prompts = prompts_of(origin.records(), is_mt_bench=False)
    missing = [prompt for prompt in prompts if any(SPEED_PLACEHOLDER in turn for turn in prompt.turns)]
    if missing:
        raise UserError(
            f"SPEED-Bench: {len(missing)} of {len(prompts)} prompts are placeholders, first {missing[0].id}: prepare "
            "the dataset with NVIDIA's script, which its card names, and give what it writes with dataset.path"
        )
    return prompts
