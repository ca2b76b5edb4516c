"""The console that people see."""

from __future__ import annotations

from typing import Any

from rich.console import Console

PLAIN_WIDTH = 100  # columns where there is no terminal to ask: a log file, a pipe


def make_console(**options: Any) -> Console:
    """A rich console that does not fall back to 80 columns when its output goes to a file."""
    console = Console(**options)
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, **options)
