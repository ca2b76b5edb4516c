"""Progress of an audit: how much is judged, the time left, and the verdicts so far."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from rich.console import Console

from selfdraft.modules.progress import PLAIN_EVERY_S, bar_of


class AuditProgress:
    """Shows judged answers: as a bar on a terminal, as a line every few seconds elsewhere."""

    def __init__(self, console: Console, total: int, finished: int) -> None:
        """Prepare to show `total` answers, of which `finished` were judged before."""
        self.console, self.total, self.finished = console, total, finished
        self.judged, self.verdicts = 0, Counter[str]()
        self.bar = bar_of("answers", console)

    def __enter__(self) -> AuditProgress:
        self.begin = self.last_line = time.monotonic()
        if self.console.is_terminal:
            self.bar.start()
            self.task = self.bar.add_task("auditing", total=self.total, completed=self.finished, so_far="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def add(self, line: dict[str, Any]) -> None:
        """Count a judged answer."""
        self.judged += 1
        self.verdicts[line.get("verdict", "left out")] += 1
        done, now = self.finished + self.judged, time.monotonic()
        so_far = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.items())
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, so_far=so_far)
        elif now - self.last_line > PLAIN_EVERY_S:
            self.last_line = now
            left = (now - self.begin) / self.judged * (self.total - done)
            self.console.print(f"{done}/{self.total} answers, about {left:.0f} s left; {so_far}")
