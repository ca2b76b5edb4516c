"""Read a user's file of JSON objects, one per line or all in one array; each comes with its place in the file."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import MalformedJSON, parse_json

# The first bytes of files that are not text, and what to do about them.
NOT_TEXT = {
    b"\x1f\x8b": "compressed by gzip; decompress it first: gunzip {}",
    b"BZh": "compressed by bzip2; decompress it first: bunzip2 {}",
    b"\xfd7zXZ": "compressed by xz; decompress it first: unxz {}",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; decompress it first: unzstd {}",
    b"PK\x03\x04": "a zip archive; unpack it first: unzip {}",
    b"PAR1": "a Parquet file; let its name end in .parquet",
    b"ARROW1": "an Arrow file; read its folder with dataset=hub, or save it as JSONL",
    b"\xff\xfe": "UTF-16 or UTF-32; save it with UTF-8 encoding",
    b"\xfe\xff": "UTF-16; save it with UTF-8 encoding",
}
LINE, ITEM, ROW = "line", "item", "row"
BEGINNING = 64 * 1024  # bytes in which a tar archive or a file of zeros can be recognised


@dataclass(frozen=True)
class Located:
    """An object of a file, with its place in the file.

    Attributes:
        path: the file, or the name of a dataset.
        unit: whether `number` counts lines of the file or items of its array, from 1, or rows of its table.
        part: the split of a dataset.
    """

    path: Path
    unit: str
    number: int
    record: Mapping[str, Any]
    part: str = ""

    @property
    def place(self) -> str:
        """Place in the file, for messages."""
        return f"{self.unit} {self.number}"

    @property
    def where(self) -> str:
        """File and place, for messages."""
        if self.unit == LINE:
            return f"{self.path}:{self.number}"
        return f"{self.path} ({self.part}, {self.place})" if self.part else f"{self.path}, {self.place}"


def read_objects(path: Path) -> Iterator[Located]:
    """Yield the objects of a UTF-8 file in order: one per line, skipping blank lines, or the items of one array.

    Raises:
        UserError: the file does not exist, is compressed or not UTF-8, its JSON is malformed, or it holds a value
            that is not an object. The message names the file and, where it applies, the line.
    """
    content = content_of(path)
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _items(path, content)
        return
    # Lines are split at newlines only, because JSON strings may hold U+2028, at which str.splitlines would split too.
    # They are decoded one by one, so that a wrong byte is reported with its line.
    for number, raw in enumerate(content.split(b"\n"), start=1):
        where = f"{path}:{number}"
        line = decoded(raw, where)
        if line.strip():
            yield Located(path, LINE, number, _object(_parsed(line, where), where, LINE))


def _items(path: Path, content: bytes) -> Iterator[Located]:
    for number, raw in enumerate(content.split(b"\n"), start=1):
        decoded(raw, f"{path}:{number}")  # only to name the line of a wrong byte
    try:
        items = parse_json(content.decode("utf-8-sig"))
    except MalformedJSON as error:
        raise UserError(
            f"{path}: malformed JSON ({error}); a file that begins with [ must be one array of objects, or else give "
            'one object a line, such as {"prompt": "..."}.'
        ) from None
    for number, item in enumerate(items, start=1):
        yield Located(path, ITEM, number, _object(item, f"{path}, {ITEM} {number}", ITEM))


def content_of(path: Path) -> bytes:
    """Return the bytes of a regular file that may be text.

    Raises:
        UserError: there is no such file, or it is known to be something else than UTF-8.
    """
    refuse_endless(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable JSONL file.") from None
    for magic, what in NOT_TEXT.items():
        if content.startswith(magic):
            raise UserError(f"{path} is {what.format(path.name)}.")
    if b"\0" in content[:BEGINNING]:
        raise UserError(f"{path} is a binary file; give a text file with one JSON object a line.")
    return content


def refuse_endless(path: Path) -> None:
    """Refuse what is not there, and devices and pipes: reading /dev/zero or an empty pipe would never end.

    Raises:
        UserError: the path is neither a regular file nor a folder.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; give the path of a file that exists.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable JSONL file.") from None
    except ValueError:  # a path with a NUL in it
        raise UserError(f"{str(path)!r} is not a path; give the path of a JSONL file.") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is not a regular file; give the path of a file of text or JSON.")


def decoded(raw: bytes, where: str) -> str:
    """Return the text of a line.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8-sig")  # some editors begin a UTF-8 file with a byte order mark
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8; save the file with UTF-8 encoding.") from None


def _parsed(line: str, where: str) -> Any:
    try:
        return parse_json(line)
    except MalformedJSON as error:
        raise UserError(
            f'{where}: malformed JSON ({error}); a line must be one whole object, such as {{"prompt": "..."}}.'
        ) from None


def _object(value: Any, where: str, unit: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        article = "an" if unit == ITEM else "a"
        raise UserError(
            f'{where}: a JSON {kind_of(value)}, but {article} {unit} must be an object, such as {{"prompt": "..."}}.'
        )
    return value


def kind_of(value: object) -> str:
    """Return JSON's name for the type of a parsed value."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string" if value.strip() else "string without text"
    if isinstance(value, list):
        return "array"
    if isinstance(value, dict):
        return "object"
    return "null" if value is None else "number"
