"""Signals that stop a run or a sweep. Imported by every command, so it imports nothing that takes time."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 130  # what shells report after Ctrl-C


@contextlib.contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Let these signals stop what runs in the block as Ctrl-C does. One that is ignored (nohup) stays ignored."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    heard = [s for s in signals if signal.getsignal(s) != signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
