"""prompts.jsonl, texts.jsonl, audit.jsonl: one line per finished (prompt, turn), safe against kill -9, ranks merged."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.tracking.files.atomic import append_whole, as_json, write_bytes_atomic

# Names of the files of task=evaluate, task=distill_data and task=audit.
NAMES = PROMPTS, TEXTS, AUDIT = "prompts", "texts", "audit"

Line = Mapping[str, Any]
"""What was measured on one turn of one prompt; the keys are those that `summary.summarize` reads."""


class RecordFile:
    """An append-only JSONL file, of which only the last, unfinished line can be lost."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._whole = 0  # bytes from the beginning that are known to be whole lines

    def append(self, line: Line) -> None:
        """Add one line and wait until it is on the disk.

        Raises:
            ValueError: the line holds NaN or infinity.
            UserError: an earlier line of the file is malformed.
            OSError: this line cannot be written.
        """
        data = as_json(line)
        # Checked before every line: a line appended to a torn one would be lost with it.
        if self._size() != self._whole:
            self._drop_torn_line()
        append_whole(self.path, data)
        self._whole = self._size()

    def read(self) -> list[dict[str, Any]]:
        """Return all complete lines, in file order; none if there is no file. A torn last line is left out.

        Raises:
            UserError: a line before the last one is not a JSON object with `id` and `turn`.
        """
        return [line for line, _ in self._scan()]

    def done(self) -> set[tuple[str, int]]:
        """Return the (id, turn) of every complete line. Raises the same errors as `read`."""
        return {key(line) for line in self.read()}

    def _scan(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each complete line with the byte offset of its end."""
        if not self.path.exists():
            return
        raws = self.path.read_bytes().splitlines(keepends=True)
        end = 0
        for number, raw in enumerate(raws, start=1):
            line = _decode(raw)
            if line is None and number == len(raws):
                return
            if not _is_ours(line):
                raise UserError(
                    f"{self.path}:{number} is not a finished prompt (a JSON object with id and turn): "
                    "remove that line, or choose another hydra.run.dir"
                )
            end += len(raw)
            yield line, end

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _drop_torn_line(self) -> None:
        if self.path.exists():
            end = max((end for _, end in self._scan()), default=0)
            with self.path.open("r+b") as file:
                file.truncate(end)


def key(line: Line) -> tuple[str, int]:
    """Return what identifies a line: (id, turn)."""
    return line["id"], line["turn"]


def record_path(folder: Path, rank: int = 0, *, name: str = PROMPTS) -> Path:
    """Return the file that process `rank` appends to: `name`.jsonl for rank 0, a separate file for each other rank.

    Appends of several processes to one file may interleave, especially on network file systems.
    """
    return Path(folder) / (f"{name}.jsonl" if rank == 0 else f"{name}.rank{rank}.jsonl")


def rank_files(folder: Path, *, name: str = PROMPTS) -> list[Path]:
    """Return all files of ranks above 0 in `folder`, by rank, whatever the number of processes is now."""
    return sorted(Path(folder).glob(f"{name}.rank*.jsonl"), key=lambda path: (len(path.name), path.name))


def merge_rank_files(folder: Path, *, name: str = PROMPTS) -> list[dict[str, Any]]:
    """Move the lines of all other ranks into `name`.jsonl, and return all of its lines.

    Only rank 0 calls it, while no process appends. If it is killed, it can be called again: lines are identified by
    (id, turn), a line of rank 0 has priority over one of another rank, and rank files are removed only after the merged
    file is in place.

    Raises:
        UserError: a line that is not the last of its file is malformed.
    """
    main, others = RecordFile(record_path(folder, name=name)), rank_files(folder, name=name)
    merged = {key(line): line for line in main.read()}
    if not others:
        return list(merged.values())
    for path in others:
        for line in RecordFile(path).read():
            merged.setdefault(key(line), line)
    write_bytes_atomic(main.path, b"".join(map(as_json, merged.values())))
    for path in others:
        path.unlink()
    return list(merged.values())


def _decode(raw: bytes) -> Any:
    """Return the value of a line; None if the line is torn, so without a newline or not JSON."""
    if not raw.endswith(b"\n"):
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError; or too many nested brackets
        return None


def _is_ours(line: Any) -> bool:
    return isinstance(line, dict) and isinstance(line.get("id"), str) and type(line.get("turn")) is int
