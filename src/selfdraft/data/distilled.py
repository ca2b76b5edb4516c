"""Texts to train on: the model's own answers (task=distill_data), or any dataset with a column of text."""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdraft.core.errors import UserError
from selfdraft.data.tables import load_table, rows_of

if TYPE_CHECKING:
    from datasets import Dataset

DATASET = "dataset"  # the folder of texts within a run's folder
UNFINISHED = "texts.jsonl"  # the finished lines of a run that has not written that folder yet
DESCRIPTION = "The target's own answers, written by task=distill_data of SelfDraft."  # identifies our datasets
INFO = "dataset_info.json"
SAVED = {INFO, "state.json"}  # files that `save_to_disk` writes besides those of the rows
OURS = {"id", "prompt_ids", "output_ids"}
TRAJECTORIES = "trajectories"  # a column that only some of our datasets have
MAX_VOCABULARY = 2**31  # ids are stored as int32

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Text:
    """A prompt and the answer to it, as token ids; a text from another source is answer only.

    `id` names the conversation and is the same for all its turns. `trajectory` holds Jacobi iterates of the answer,
    each of the answer's length (see `decoding.trajectories`); the first one is the initial guess.
    """

    id: str
    prompt: list[int]
    answer: list[int]
    trajectory: list[list[int]] | None = None


def write_dataset(lines: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Save finished lines as a dataset in `folder`/dataset, in their order, replacing one that this function wrote.

    Columns: id, category, turn, prompt_ids, output_ids, text, and trajectories if any line has them.

    Raises:
        UserError: the dataset folder was written by something else.
    """
    refuse_foreign_dataset(folder)
    import datasets

    ids = datasets.List(datasets.Value("int32"))
    columns = {
        "id": datasets.Value("string"),
        "category": datasets.Value("string"),
        "turn": datasets.Value("int32"),
        "prompt_ids": ids,
        "output_ids": ids,
        "text": datasets.Value("string"),
    }
    lines = list(lines)
    if any("trajectories" in line for line in lines):
        columns["trajectories"] = datasets.List(ids)
    rows = {name: [line[name] for line in lines] for name in columns}
    path = folder / DATASET
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        # It is made in a temporary folder and then moved, so that a killed run leaves no half-written dataset.
        with tempfile.TemporaryDirectory(prefix=f".{DATASET}.", dir=folder) as scratch:
            made, old = Path(scratch, "new"), Path(scratch, "old")
            about = datasets.DatasetInfo(description=DESCRIPTION, features=datasets.Features(columns))
            datasets.Dataset.from_dict(rows, info=about).save_to_disk(made)
            if path.exists():
                path.rename(old)
            return made.rename(path)
    finally:
        if shown:
            datasets.enable_progress_bars()


def refuse_foreign_dataset(folder: Path) -> None:
    """Refuse a dataset in `folder` that task=distill_data did not write, and that must therefore not be replaced.

    Raises:
        UserError: there is one.
    """
    path = folder / DATASET
    if not os.path.lexists(path):
        return
    names = {file.name for file in path.iterdir()} if path.is_dir() and not path.is_symlink() else {""}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        about = json.loads((path / INFO).read_bytes())
        if about["description"] == DESCRIPTION and all(name in SAVED or name.endswith(".arrow") for name in names):
            return
    raise UserError(f"{path} was not written by task=distill_data, which would replace it: move it elsewhere")


def load_texts(
    path: str | Path,
    encode: Encode | None = None,
    *,
    column: str = "text",
    split: str = "train",
    vocabulary: int = MAX_VOCABULARY,
) -> list[Text]:
    """Read texts from the folder of a run of task=distill_data, or from any dataset with a column of text.

    Args:
        path: a run's folder or the dataset folder in it; a folder of `save_to_disk`; or what `load_dataset` takes: a
            Hub name or a folder of files.
        encode: from text to token ids, for datasets without our id columns. Texts without tokens are left out.
        column, split: where the text is, in a dataset that is not ours.
        vocabulary: number of the model's token ids.

    Raises:
        UserError: there are no texts, the run is not finished, the column is missing, or `encode` is needed but None.
    """
    rows = _read(path, split)
    texts = _texts(rows, path, encode, column, vocabulary)
    if not texts:
        raise UserError(f"{path} holds no texts: choose another one, or another split")
    return texts


def split_by_prompt(texts: Sequence[Text], share: float, seed: int) -> tuple[list[Text], list[Text]]:
    """Return texts to train on, and a held-out `share`: whole conversations, at least one in each part.

    Raises:
        UserError: `share` is not between 0 and 1, or there are fewer than two conversations.
    """
    if not 0 < share < 1:
        raise UserError(f"a share of {share} held out: must be between 0 and 1")
    names = list(dict.fromkeys(text.id for text in texts))
    if len(names) < 2:
        raise UserError(f"{len(names)} conversation(s) to learn from: at least 2 are needed, one of them held out")
    random.Random(seed).shuffle(names)
    held_out = set(names[: min(max(round(share * len(names)), 1), len(names) - 1)])
    train = [text for text in texts if text.id not in held_out]
    return train, [text for text in texts if text.id in held_out]


def _texts(rows: Dataset, path: str | Path, encode: Encode | None, column: str, vocabulary: int) -> list[Text]:
    if set(rows.column_names) >= OURS:
        found = enumerate(rows_of(rows, path, *OURS, TRAJECTORIES))
        return [_ours(row, f"{path}, row {number}", vocabulary) for number, row in found]
    if column not in rows.column_names:
        raise UserError(
            f"{path} has neither the columns of task=distill_data nor a column {column!r}; "
            f"it has {', '.join(rows.column_names)}"
        )
    if encode is None:
        raise UserError(f"{path} holds plain text, and there is no tokenizer to read it with: use task=distill_data's")
    texts = []
    for number, row in enumerate(rows_of(rows, path, column)):
        if not isinstance(row[column], str):
            raise UserError(f"{path}, row {number}: {column!r} must be a text")
        if ids := list(encode(row[column])):
            texts.append(Text(str(number), [], ids))
    return texts


def _ours(row: Mapping[str, Any], where: str, vocabulary: int) -> Text:
    """Check a row with the columns of task=distill_data, which others may have filled, and return its text."""
    prompt, answer, trajectory = row["prompt_ids"], row["output_ids"], row.get(TRAJECTORIES)
    for name, ids in (("prompt_ids", prompt), ("output_ids", answer)):
        if not _are_ids(ids, vocabulary):
            raise UserError(
                f"{where}: `{name}` must be a list of token ids, from 0 to {vocabulary - 1}: "
                "write the texts with this model"
            )
    if trajectory is not None and not (
        isinstance(trajectory, list)
        and all(_are_ids(each, vocabulary) and len(each) == len(answer) for each in trajectory)
    ):
        raise UserError(f"{where}: `{TRAJECTORIES}` must be lists of token ids, each as long as `output_ids`")
    return Text(str(row["id"]), prompt, answer, trajectory)


def _are_ids(value: object, vocabulary: int) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < vocabulary for each in value)


def _read(path: str | Path, split: str) -> Dataset:
    advice = "give the folder of a run of task=distill_data, of a dataset, or a dataset's name"
    try:
        written, is_begun = (Path(path) / DATASET).is_dir(), (Path(path) / UNFINISHED).exists()
    except OSError:  # too long for a file path, so it is a name
        written = is_begun = False
    if is_begun and not written:
        raise UserError(
            f"{path} holds a run of task=distill_data that is not finished: "
            f"its command with hydra.run.dir={path} goes on with it"
        )
    return load_table(Path(path) / DATASET if written else path, split=split, advice=advice)
