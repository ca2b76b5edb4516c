"""Replace files atomically, and append whole lines to files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def write_text_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8): all of it or nothing, for any reader and even if the process is killed.

    Raises:
        OSError: the file cannot be written; the old one is unchanged. The error's `filename` is `path`.
        UnicodeEncodeError: the text holds a lone surrogate, which UTF-8 has no bytes for.
    """
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data`, all of it or nothing. Raises OSError if the file cannot be written."""
    path = Path(path)
    # In the same folder, as a rename is atomic only within a file system; named by process, so that two never share it.
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
        ValueError: `value` holds NaN or infinity, which standard JSON does not have.
        TypeError: `value` holds a type that JSON cannot represent.
        OSError: the file cannot be written.
    """
    write_bytes_atomic(path, as_json(value, indent=2))


def as_json(value: Any, *, indent: int | None = None) -> bytes:
    r"""Return `value` as JSON in UTF-8 with a newline at the end.

    A lone surrogate, half of a character, has no bytes in UTF-8. It is written as JSON's own escape, \udxxx, and read
    back unchanged.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def append_whole(path: Path, data: bytes) -> None:
    """Add `data` at the end of `path`, all of it or nothing, and wait until it is on the disk.

    Raises:
        OSError: the data cannot be written. A part that was written is removed again.
    """
    with _naming(path), Path(path).open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            _write_all(file, data)
            os.fsync(file.fileno())
        except BaseException as error:
            # A signal that comes while the disk is waited for changes nothing: the data is whole, and stays.
            if isinstance(error, OSError) or file.tell() < end + len(data):
                with suppress(OSError):  # if this fails, too, the next reader leaves out the torn line
                    file.truncate(end)
            raise


def cut_torn_tail(path: Path) -> None:
    """Cut off everything after the last newline of a file of lines: a line that was not written completely.

    Otherwise a library that appends to the file would continue that line. No other process may append meanwhile.

    Raises:
        OSError: the file cannot be read or shortened. A file that does not exist is no error.
    """
    path = Path(path)
    with suppress(FileNotFoundError), _naming(path), path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data`, in several calls if need be: when a disk fills up, one call writes only a part."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError, because the system's own error of a write names no file, or the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
