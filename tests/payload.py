"""An object whose unpickling runs code: it creates a file, which shows a test that code was run."""

from __future__ import annotations

from pathlib import Path


class Payload:
    """Its pickle is a call of `Path.touch`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)
