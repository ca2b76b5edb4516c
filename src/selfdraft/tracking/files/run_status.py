"""status.json: whether a run has ended, how, and why it failed. Sweeps and reports read it instead of output."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from selfdraft.tracking.files.atomic import write_json_atomic

STATUS = "status.json"
RUNNING, COMPLETED, FAILED, STOPPED = "running", "completed", "failed", "stopped"


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        status: running (also of a process that was killed), completed, failed or stopped.
        reason: why it failed, in one line; empty otherwise.
        seconds: from its beginning to its end; 0 while it is running.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0

    def write(self, folder: Path) -> None:
        """Write it into a run's folder."""
        write_json_atomic(folder / STATUS, asdict(self))

    @staticmethod
    def read(folder: Path) -> RunStatus | None:
        """Return the status of the run in a folder; None if no run has begun there, or its file is damaged."""
        with suppress(OSError, ValueError, TypeError):
            return RunStatus(**json.loads((folder / STATUS).read_text(encoding="utf-8")))
        return None
