"""Signals that stop a run or a sweep. Every command imports this module, so it imports nothing slow."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 130  # the exit status that shells report after Ctrl-C


@contextlib.contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Make these signals stop the `with` block as Ctrl-C does. A signal that is ignored (nohup) stays ignored."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    heard = [s for s in signals if signal.getsignal(s) != signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # None: one that was not set from Python, and cannot be set again
                signal.signal(number, handler)
