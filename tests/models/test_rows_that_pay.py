"""The number of rows that are decoded at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.measuring import batches
from selfdraft.models.measuring.batches import BatchRate, best_rate, rows_that_fit
from selfdraft.models.measuring.memory import needed


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(tiny_model("llama"))


def clock_of(seconds: Callable[[int], float]) -> Callable[..., object]:
    return lambda target, most, context: (
        BatchRate(rows, seconds(rows)) for rows in (8, 16, 32, 64, 128) if rows <= most
    )


def test_rows_are_doubled_while_that_pays(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_rates", clock_of(lambda rows: 0.1 + max(rows - 32, 0)))
    assert best_rate(target, most=128, context=8).rows == 32
    monkeypatch.setattr(batches, "_rates", clock_of(lambda rows: 0.1))
    assert best_rate(target, most=64, context=8).rows == 64


def test_real_forwards_are_timed_and_not_counted(target: Target) -> None:
    before = target.forwards
    rate = best_rate(target, most=3, context=5)
    assert rate.rows == 3 and rate.seconds > 0
    assert target.forwards == before


def test_memory_bounds_the_rows(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "available", lambda device: 0)
    assert rows_that_fit(target, 64) == 1
    monkeypatch.setattr(batches, "available", lambda device: 10**12)
    assert rows_that_fit(target, 64) == batches.MOST_ROWS
    one = rows_size(target)
    monkeypatch.setattr(batches, "available", lambda device: int(one * 21))
    assert (rows_that_fit(target, 64), rows_that_fit(target, 64, processes=2)) == (10, 5)


def rows_size(target: Target) -> int:
    """Bytes of one row, by the same estimate as that of a run."""
    one, two = (
        needed(target.model, target.dtype, target.device, rows=n, packed=False, new_tokens=64, certify=False).total
        for n in (1, 2)
    )
    return two - one
