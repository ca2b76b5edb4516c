"""Which of a run's processes this is, as Lightning keeps it."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_only  # Lightning's own, without importing Lightning


def process_rank() -> int:
    """Return this process's rank among the run's processes, 0 for the first or the only one."""
    return getattr(rank_zero_only, "rank", None) or 0


def set_process_rank(rank: int) -> None:
    """Tell Lightning this process's rank before there is a trainer."""
    rank_zero_only.rank = rank  # type: ignore[attr-defined]  # Lightning keeps it as an attribute of a function
