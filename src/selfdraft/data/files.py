"""Read a user's file of prompts by the end of its name: .txt, .parquet, and JSON or JSONL for all others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import parse_json
from selfdraft.core.messages import one_line
from selfdraft.data.json_file import LINE, ROW, Located, content_of, decoded, read_objects, refuse_endless

PARQUET_MAGIC = b"PAR1"
MAX_CAUSE = 300  # characters of pyarrow's reason that are shown
# Prints the rows of a Parquet file as lines of JSON; what JSON does not have, such as the bytes of an image, is null.
# Python would search the working directory for modules first, so it is removed from sys.path.
READER = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import json
from pyarrow.parquet import ParquetFile
with ParquetFile(sys.argv[1]) as file:
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            print(json.dumps(row, default=lambda value: None))
"""


def read_records(path: Path) -> Iterator[Located]:
    """Yield the records of a file in order: JSON objects, rows of a Parquet file, or each line of a .txt as a `prompt`.

    Raises:
        UserError: the file cannot be read as what its name says; the message names the file and the place.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        yield from _lines_of_text(path)
    elif suffix == ".parquet":
        yield from _rows_of_parquet(path)
    else:
        yield from read_objects(path)


def _lines_of_text(path: Path) -> Iterator[Located]:
    for number, raw in enumerate(content_of(path).split(b"\n"), start=1):
        text = decoded(raw, f"{path}:{number}").rstrip("\r")
        if text.strip():
            yield Located(path, LINE, number, {"prompt": text})


def _rows_of_parquet(path: Path) -> Iterator[Located]:
    """Yield the rows. Another process reads the file, because pyarrow may end the process for a damaged one."""
    refuse_endless(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(PARQUET_MAGIC))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable Parquet file.") from None
    if magic != PARQUET_MAGIC:
        raise UserError(f"{path} is not a Parquet file; let its name end in .jsonl or .txt if it is text.")
    read = subprocess.run([sys.executable, "-c", READER, str(path.absolute())], capture_output=True, check=False)
    if read.returncode:
        cause = read.stderr.decode(errors="replace").strip().splitlines()[-1:]
        reason = one_line(cause[0])[:MAX_CAUSE] if cause and read.returncode > 0 else "reading it ended a process"
        raise UserError(f"{path} cannot be read ({reason}); repair it, or give it as JSONL.")
    for number, line in enumerate(read.stdout.splitlines(), start=1):
        yield Located(path, ROW, number, parse_json(line.decode()))
