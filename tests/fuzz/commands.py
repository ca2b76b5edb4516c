"""Command lines that fuzz tests try: how each ended, within a limit."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from command_line import ROOT, environment
from forked import run_forked
from selfdraft.core.messages import printable

LIMIT_S = 60.0


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    def refuse_anything_but_success_or_a_line(self) -> None:
        """Assert that it ended with 0, or with 2 and one line, and that a terminal shows whatever it printed."""
        assert self.status in (0, 2), f"status {self.status}\n{self.err[-3000:]}"
        assert "Traceback" not in self.out + self.err, self.err[-3000:]
        if self.status == 2:
            (line,) = self.err.splitlines()
            assert line.startswith("selfdraft: "), line
        for text in (self.out, self.err):
            assert printable(text) == text, repr(text[-3000:])


def ended(arguments: Sequence[str], cwd: Path) -> Ended:
    """Run `python run.py <arguments>` in `cwd`, killed after the limit."""
    try:
        done = run_forked(ROOT / "run.py", arguments, cwd=cwd, env=environment(), timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it was still running after {LIMIT_S:.0f} s: {arguments}") from None
    return Ended(done.returncode, done.stdout, done.stderr)
