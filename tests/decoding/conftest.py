"""Drafters that measure costs do so quickly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from made import measure_once


@pytest.fixture(scope="module", autouse=True)
def quick_costs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_once(patch)
        yield
