"""Files that are either the old ones or the new ones, never half of each; and files that grow by whole lines."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def write_text_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8): a reader, or a run killed at any moment, sees all of it or nothing of it.

    Raises:
        OSError: the disk does not take it. The old file is still there. Its `filename` is `path`.
        UnicodeEncodeError: the text holds a lone surrogate, which UTF-8 has no bytes for.
    """
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all. Raises OSError where the disk does not take it."""
    path = Path(path)
    # In the same folder, since a rename is atomic only within a file system; by process, so that two never share it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _naming(path):
        try:
            with temporary.open("wb", buffering=0) as file:
                _write_all(file, data)
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def write_json_atomic(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON cannot carry to other readers.
        TypeError: `value` holds something that JSON has no word for.
        OSError: the disk does not take it.
    """
    write_bytes_atomic(path, as_json(value, indent=2))


def as_json(value: Any, *, indent: int | None = None) -> bytes:
    r"""Return `value` as JSON in UTF-8 with a newline at the end.

    A lone surrogate, half of a character, has no bytes in UTF-8. It is written as JSON's own escape, \udxxx, and reads
    back as it was.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def append_whole(path: Path, data: bytes) -> None:
    """Add `data` at the end of `path`, all of it or nothing, and wait until it is on the disk.

    Raises:
        OSError: the disk does not take it. What a short write has left is cut off again.
    """
    with _naming(path), Path(path).open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            _write_all(file, data)
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):  # then the next one who reads the file finds the torn line and leaves it out
                file.truncate(end)
            raise


def cut_torn_tail(path: Path) -> None:
    """Cut off what comes after the last newline of a file of lines: a line that was not written to its end.

    A library that appends to the file would continue that line. Nobody may append meanwhile.

    Raises:
        OSError: the file cannot be read or shortened. A file that does not exist is no error.
    """
    path = Path(path)
    with suppress(FileNotFoundError), _naming(path), path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write until nothing is left: on a disk that fills, one call writes a part and returns how much."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name `path` in what the disk refuses: the system's own error of a write names no file, or the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
