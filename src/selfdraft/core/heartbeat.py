"""A line every few seconds while something long goes on, so that nobody wonders whether it still does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 10.0  # seconds between two lines


class Heartbeat:
    """Calls a function every few seconds from a thread of its own, within a `with` block.

    The work is not slowed down: the thread sleeps, and wakes only to call.
    """

    def __init__(self, beat: Callable[[float], object], every_s: float = EVERY_S) -> None:
        """Prepare it.

        Args:
            beat: called with the seconds since the block began.
            every_s: seconds between two calls.
        """
        self.beat, self.every_s = beat, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None:
        """Start calling."""
        self._begun = time.monotonic()
        self._thread.start()

    def end(self) -> None:
        """Stop calling, and return when no call is going on. Ending twice, or before the beginning, does nothing."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self.every_s):
            self.beat(time.monotonic() - self._begun)


@contextmanager
def busy(what: str, tell: Callable[[str], object]) -> Iterator[None]:
    """Tell what a `with` block does when it begins, and every few seconds that it still does it.

    Args:
        what: e.g. `loading the model`.
        tell: prints a line.
    """
    tell(f"{what} …")
    with Heartbeat(lambda seconds: tell(f"still {what}, {seconds:.0f} s")):
        yield
