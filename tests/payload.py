"""An object whose unpickling runs code: it makes a file, by which a test sees that something was executed."""

from __future__ import annotations

from pathlib import Path


class Payload:
    """Pickled, it is a call of `Path.touch`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)
