"""One process that has imported everything, for all commands of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from commands import Commands


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Runs commands, a second each."""
    with Commands() as started:
        yield started
