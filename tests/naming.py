"""A test that goes over a list of cases says which of them failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def naming(*case: object) -> Iterator[None]:
    """Put the case's name in front of what fails inside."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        name = ", ".join(f"{part}"[:120] for part in case)
        raise AssertionError(f"in the case {name!r}: {error}") from error
