"""viewer.json: what the decode viewer needs of a few turns besides the lines of prompts.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdraft.tracking.numbers.lines import CONTENDERS

VIEWER = "viewer.json"
MAX_BYTES = 64_000_000


def read_sample(folder: Path) -> Mapping[str, Any]:
    """Return the sample in a run's folder; one without turns if there is none, or it is no such file."""
    nothing: dict[str, Any] = {"turns": [], "texts": {}}
    path = folder / VIEWER
    try:
        if path.stat().st_size > MAX_BYTES:
            return nothing
        found = json.loads(path.read_bytes())
        is_sample = isinstance(found["texts"], dict) and all(
            isinstance(turn[CONTENDERS], dict) for turn in found["turns"]
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return nothing
    return found if is_sample else nothing
