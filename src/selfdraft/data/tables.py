"""Read tables with the package `datasets`: from the Hub, a local folder of files, or a folder of `save_to_disk`."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import MalformedJSON, parse_json

if TYPE_CHECKING:
    from datasets import Dataset

JSON_LINES = {".jsonl", ".ndjson", ".json"}
# By the first bytes of a file.
OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# Reads a folder in a separate process, because pyarrow may end the process. Arguments: cache, name, whether it was made
# by save_to_disk, split, subset. Python would search the working directory for modules first and run a datasets.py
# there, so the working directory is removed from sys.path.
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
MANY_LEVELS = 500  # lines with more opening brackets go to Python's parser first, which has a limit


def load_table(
    name: str | Path, *, split: str, advice: str, subset: str | None = None, revision: str | None = None
) -> Dataset:
    """Return one split of a dataset.

    Args:
        name: of a dataset on the Hub, or of a local folder.
        split: name of the split.
        advice: the end of the error message if the dataset cannot be loaded.
        subset: name of the configuration, if the dataset has several.
        revision: commit, branch or tag on the Hub.

    Raises:
        UserError: the dataset cannot be loaded; the message has the cause. Any exception of `datasets` is taken as a
            fault of the dataset.
    """
    # Imported here because it takes about a second, which other sources of prompts do not need.
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
        # A folder's files are read by a dozen parsers, each with its own exceptions: EOFError, zipfile.BadZipFile,
        # UnicodeDecodeError, StopIteration for an empty file, KeyError for a damaged state.json.
        raise UserError(f"Dataset {str(name)!r} could not be loaded ({_cause(error)}); {advice}.") from error
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise UserError(f"Dataset {str(name)!r} has no split {split!r}; it has {', '.join(table)}.")
        return table[split]
    return table


def rows_of(table: Dataset, name: str | Path, *columns: str) -> Iterator[dict[str, Any]]:
    """Yield the rows with those of `columns` that exist; other columns, such as images, are not even decoded.

    Raises:
        UserError: a row cannot be read.
    """
    rows = iter(table.select_columns([column for column in columns if column in table.column_names]))
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # such as text that is not UTF-8, or a damaged image in the column of prompts
            raise UserError(
                f"Dataset {str(name)!r} cannot be read ({_cause(error)}); repair its files, or name another column."
            ) from error
        yield row


def _refuse_deep_lines(folder: Path) -> None:
    """Refuse lines nested so deeply that pyarrow's parser overflows its stack, which ends the process silently."""
    for path in folder.rglob("*"):
        if not set(path.suffixes) & JSON_LINES or not path.is_file():
            continue
        with path.open("rb") as file:
            magic = file.read(6)
        opened = next((opener for beginning, opener in OPENERS.items() if magic.startswith(beginning)), open)
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.count(b"[") + line.count(b"{") <= MANY_LEVELS:
                    continue
                try:
                    parse_json(line.decode("utf-8-sig", errors="replace"))
                except MalformedJSON as error:
                    raise UserError(f"{path}:{number}: malformed JSON ({error}); repair or remove that line.") from None


def _refuse_what_ends_the_process(folder: Path, is_saved: bool, split: str, subset: str | None) -> None:
    """Read a folder in another process first, because damaged files can make pyarrow end the process that reads them.

    Ordinary exceptions of that process are ignored: the same call raises them here again, where they are reported.
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
    """Suppress the log lines of `datasets`, and its progress bars unless something is downloaded."""
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
    """Return the original cause as one line, because `datasets` wraps it in a general error."""
    while (inner := error.__cause__) is not None:
        error = inner
    if isinstance(error, StopIteration):
        return "it has an empty file"
    if isinstance(error, UnicodeDecodeError):
        return "it has a file that is not UTF-8"
    return " ".join(str(error).split()) or type(error).__name__
