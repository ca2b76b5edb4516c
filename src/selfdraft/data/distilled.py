"""Texts to learn from: what the model wrote itself (task=distill_data), or any dataset with a column of text."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdraft.core.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

DATASET = "dataset"  # the folder of texts within that of a run
UNFINISHED = "texts.jsonl"  # what a run without that folder has written so far
OURS = {"id", "prompt_ids", "output_ids"}

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Text:
    """A prompt and the answer to it, as token ids; a text from elsewhere is all answer.

    `id` names the conversation: all its turns bear the same. `trajectory` holds iterates of the answer, each as long as
    it is (see `decoding.trajectories`), the first one a mere guess.
    """

    id: str
    prompt: list[int]
    answer: list[int]
    trajectory: list[list[int]] | None = None


def write_dataset(lines: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Save finished lines as a dataset in `folder`/dataset, in their order; what was there before is replaced.

    Columns: id, category, turn, prompt_ids, output_ids, text, and trajectories where the lines have them.
    """
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
    path, temporary = folder / DATASET, folder / f".{DATASET}.tmp"
    for old in (temporary, path):  # a run killed in between writes it again
        shutil.rmtree(old, ignore_errors=True)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset.from_dict(rows, features=datasets.Features(columns)).save_to_disk(temporary)
    finally:
        if shown:
            datasets.enable_progress_bars()
    return temporary.rename(path)


def load_texts(
    path: str | Path, encode: Encode | None = None, *, column: str = "text", split: str = "train"
) -> list[Text]:
    """Read texts from the folder of a run of task=distill_data, or from any dataset with a column of text.

    Args:
        path: a run's folder or the dataset's in it; a folder of `save_to_disk`; or what `load_dataset` takes: a Hub
            name or a folder of files.
        encode: from text to ids, for datasets without ids of ours. Texts of no token are passed over.
        column, split: where the text is, in a dataset of others.

    Raises:
        UserError: there is nothing, the run is not finished, the column is missing or there is no way to encode it.
    """
    rows = _read(path, split)
    texts = _texts(rows, path, encode, column)
    if not texts:
        raise UserError(f"{path} holds no texts: choose another one, or another split")
    return texts


def split_by_prompt(texts: Sequence[Text], share: float, seed: int) -> tuple[list[Text], list[Text]]:
    """Texts to train on, and the `share` of them held out: whole conversations, at least one on each side.

    Raises:
        UserError: a share that is none, or texts of one conversation only.
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


def _texts(rows: Dataset, path: str | Path, encode: Encode | None, column: str) -> list[Text]:
    if set(rows.column_names) >= OURS:
        return [Text(row["id"], row["prompt_ids"], row["output_ids"], row.get("trajectories")) for row in rows]
    if column not in rows.column_names:
        raise UserError(
            f"{path} has neither the columns of task=distill_data nor a column {column!r}; "
            f"it has {', '.join(rows.column_names)}"
        )
    if encode is None:
        raise UserError(f"{path} holds plain text, and there is no tokenizer to read it with: use task=distill_data's")
    texts = []
    for number, row in enumerate(rows):
        if not isinstance(row[column], str):
            raise UserError(f"{path}, row {number}: {column!r} must be a text")
        if ids := list(encode(row[column])):
            texts.append(Text(str(number), [], ids))
    return texts


def _read(path: str | Path, split: str) -> Dataset:
    # Imported here because it takes about a second, which other tasks need not pay.
    import datasets

    folder = Path(path)
    if (folder / DATASET).is_dir():
        folder = folder / DATASET
    elif (folder / UNFINISHED).exists():
        raise UserError(
            f"{path} holds a run of task=distill_data that is not finished: "
            f"its command with hydra.run.dir={path} goes on with it"
        )
    saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
    try:
        rows = datasets.load_from_disk(folder) if saved else datasets.load_dataset(str(path), split=split)
    except (OSError, ValueError, RuntimeError, IndexError, datasets.exceptions.DatasetsError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"no texts could be loaded from {path} ({cause}); give the folder of a run of task=distill_data, "
            "of a dataset, or a dataset's name"
        ) from error
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise UserError(f"{path} has no split {split!r}; it has {', '.join(rows)}")
        return rows[split]
    return rows
