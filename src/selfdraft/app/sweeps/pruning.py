"""Ends jobs of a sweep that cannot become the best any more, by the prompts that they have finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfdraft.app.sweeps.sweep_table import dig

LOW = ("speedup_total_interval", "low")  # in result.json: what a job's speedup is at least


@dataclass
class Pruner:
    """Compares the speedup of a job so far with that of the best finished job.

    A job is hopeless if even the upper end of its interval is below the lower end of the best job's. The intervals are
    those of result.json, drawn by prompt. Only an evaluation has one speedup; jobs of other tasks are never ended.

    Attributes:
        after: prompts that a job may finish in any case; 0 to end no job.
        best: lower end of the interval of the best finished job; None while there is none.
    """

    after: int
    best: float | None = None
    _sizes: dict[Path, int] = field(default_factory=dict)  # bytes of prompts.jsonl at the last look

    def finished(self, result: Mapping[str, Any]) -> None:
        """Take note of the result of a finished job."""
        low = dig(result, LOW)
        if isinstance(low, int | float) and (self.best is None or low > self.best):
            self.best = float(low)

    def verdict(self, folder: Path) -> str:
        """Return why the running job in a folder is hopeless, in one line; empty if it is not."""
        from selfdraft.tracking.files.records import RecordFile, record_path
        from selfdraft.tracking.numbers.lines import CONTENDERS, measured
        from selfdraft.tracking.numbers.summary import speedup_over_all

        path = record_path(folder)
        size = path.stat().st_size if path.exists() else 0
        if not self.after or self.best is None or size == self._sizes.get(folder, 0):
            return ""
        self._sizes[folder] = size
        lines = [line for line in measured(RecordFile(path).read()) if CONTENDERS not in line]
        prompts = len({line["id"] for line in lines})
        high = speedup_over_all(lines, 0)["high"] if prompts >= self.after else None
        if high is None or high >= self.best:
            return ""
        return f"speedup at most {high:.2f} after {prompts} prompts, and the best job has at least {self.best:.2f}"
