"""Files that are either the old ones or the new ones, never half of each."""

import json
import os
from pathlib import Path
from typing import Any


def write_text_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8): a reader, or a run killed at any moment, sees all of it or nothing of it."""
    path = Path(path)
    # In the same folder, since a rename is atomic only within a file system; by process, so that two never share it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON cannot carry to other readers.
        TypeError: `value` holds something that JSON has no word for.
    """
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
