"""Tables that the package `datasets` reads: of the Hub, of a local folder of files, or of `save_to_disk`."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import MalformedJSON, parse_json

if TYPE_CHECKING:
    from datasets import Dataset

JSON_LINES = {".jsonl", ".ndjson", ".json"}
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # by the first bytes of a file
# Reads a folder in a process of its own, which pyarrow may end: cache, name, whether saved, split, subset.
# Without the folder that the user is in, which Python searches first here: a datasets.py there would be run.
TRIAL = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import datasets
cache, name, saved, split, subset = sys.argv[1:]
if saved:
    table = datasets.load_from_disk(name)
    try:
        for part in table.values() if isinstance(table, dict) else [table]:
            part.data.validate(full=True)
    except Exception:
        sys.exit(3)
else:
    datasets.load_dataset(name, subset or None, split=split, cache_dir=cache)
"""
MANY_LEVELS = 500  # opening brackets, from which on a line is given to Python's parser first: that one has a limit


def load_table(
    name: str | Path, *, split: str, advice: str, subset: str | None = None, revision: str | None = None
) -> Dataset:
    """Return one split of a dataset.

    Args:
        name: of a dataset of the Hub, or of a local folder.
        split: which one. subset: which of its configurations, where it has several.
        revision: of the Hub: a commit, branch or tag.
        advice: the end of the message about what cannot be loaded.

    Raises:
        UserError: with the cause; whatever `datasets` raises is about what it was given.
    """
    # Imported here because it takes about a second, which the other sources need not pay.
    import datasets

    try:
        folder = Path(name)
        is_saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
        is_local = folder.exists()
        if is_local:
            _refuse_deep_lines(folder)
            _refuse_what_ends_the_process(folder, is_saved, split, subset)
        with _quiet(is_local):
            if is_saved:
                table = datasets.load_from_disk(folder)
            else:
                table = datasets.load_dataset(str(name), subset, split=split, revision=revision)
    except UserError:
        raise
    except Exception as error:
        # A folder's files go through a dozen parsers, each with exceptions of its own: EOFError, zipfile.BadZipFile,
        # UnicodeDecodeError, StopIteration for an empty file, KeyError for a damaged state.json.
        raise UserError(f"Dataset {str(name)!r} could not be loaded ({_cause(error)}); {advice}.") from error
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise UserError(f"Dataset {str(name)!r} has no split {split!r}; it has {', '.join(table)}.")
        return table[split]
    return table


def rows_of(table: Dataset, name: str | Path, *columns: str) -> Iterator[dict[str, Any]]:
    """Yield the rows with those of `columns` that there are; others, such as images, are not even decoded.

    Raises:
        UserError: a row cannot be read.
    """
    rows = iter(table.select_columns([column for column in columns if column in table.column_names]))
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # of text that is no UTF-8, or of a damaged image in the column of prompts
            raise UserError(
                f"Dataset {str(name)!r} cannot be read ({_cause(error)}); repair its files, or name another column."
            ) from error
        yield row


def _refuse_deep_lines(folder: Path) -> None:
    """Refuse what would overflow the stack of pyarrow's parser, which ends the process without a word."""
    for path in folder.rglob("*"):
        if not set(path.suffixes) & JSON_LINES or not path.is_file():
            continue
        with path.open("rb") as file:
            magic = file.read(6)
        opened = next((opener for beginning, opener in COMPRESSED.items() if magic.startswith(beginning)), open)
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.count(b"[") + line.count(b"{") <= MANY_LEVELS:
                    continue
                try:
                    parse_json(line.decode("utf-8-sig", errors="replace"))
                except MalformedJSON as error:
                    raise UserError(f"{path}:{number}: malformed JSON ({error}); repair or remove that line.") from None


def _refuse_what_ends_the_process(folder: Path, is_saved: bool, split: str, subset: str | None) -> None:
    """Read a folder in another process first: damaged files can make pyarrow end the process that reads them.

    What it raises there is raised here again, by the same call, and told with its reason.
    """
    import datasets

    arguments = [str(datasets.config.HF_DATASETS_CACHE), str(folder), "saved" if is_saved else "", split, subset or ""]
    trial = subprocess.run([sys.executable, "-c", TRIAL, *arguments], capture_output=True, check=False)
    if trial.returncode < 0 or trial.returncode == 3:
        signal = -trial.returncode
        reason = f"reading it ended a process by signal {signal}" if signal > 0 else "its Arrow files are damaged"
        raise UserError(
            f"Dataset {str(folder)!r} could not be loaded ({reason}); "
            "repair its files, or give them as JSONL with dataset=jsonl."
        )


@contextmanager
def _quiet(is_local: bool) -> Iterator[None]:
    """Have no log lines besides the one error, and progress bars for downloads only."""
    import datasets

    logger, shown = logging.getLogger("datasets"), datasets.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    if is_local:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def _cause(error: BaseException) -> str:
    """The first reason, as one line: `datasets` wraps it into "An error occurred while generating the dataset"."""
    while (inner := error.__cause__) is not None:
        error = inner
    if isinstance(error, StopIteration):
        return "it has an empty file"
    if isinstance(error, UnicodeDecodeError):
        return "it has a file that is not UTF-8"
    return " ".join(str(error).split()) or type(error).__name__
