"""The rank that loggers and the console go by is the one that Lightning goes by."""

from __future__ import annotations

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from selfdraft.tracking.files.rank import process_rank, set_process_rank


def test_the_rank_is_lightnings(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    assert process_rank() == 3
    set_process_rank(1)
    assert rank_zero_only.rank == 1
    assert rank_zero_only(lambda: "rank 0 only")() is None


def test_a_process_that_was_given_no_rank_is_the_first(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", None)
    assert process_rank() == 0
