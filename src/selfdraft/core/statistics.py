"""Confidence intervals of measured ratios, by bootstrap over prompts."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A point estimate and the bounds of its confidence interval, in the unit of the data."""

    median: float
    low: float
    high: float


def paired_bootstrap(
    ratios: Sequence[float],
    *,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    statistic: Callable[[np.ndarray], float] | None = None,
) -> Interval:
    """Return the statistic of paired ratios, with a percentile bootstrap interval.

    Args:
        ratios: one paired ratio for each measurement, e.g. our token rate over the baseline's on the same prompt.
        seed: for the resampling; the same ratios and seed give the same interval.
        groups: the group of each ratio. Whole groups are drawn, because the turns of one conversation resemble each
            other, and drawing them independently would make the interval too narrow. None: each ratio is its own group.
        confidence: coverage of the interval, in (0, 1).
        resamples: number of bootstrap draws.
        statistic: maps a 1-D array of ratios to the estimate; None for the median.

    Returns:
        The estimate and its bounds; with a single group there is nothing to resample, and all three are equal.

    Raises:
        ValueError: no ratio, a ratio that is not finite, or `groups` of another length.
    """
    values = np.asarray(ratios, dtype=np.float64)
    if values.size == 0:
        raise ValueError("paired_bootstrap needs at least one ratio")
    if not np.isfinite(values).all():
        raise ValueError("paired_bootstrap needs finite ratios")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(values)} ratios but {len(groups)} groups")

    members = _members(values, groups)
    estimate = float(np.median(values) if statistic is None else statistic(values))
    if len(members) == 1:
        return Interval(estimate, estimate, estimate)

    def of_draws(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        picked = members[drawn.astype(np.intp)].reshape(*drawn.shape[:-1], -1)
        if statistic is None:  # of all draws at once
            return (np.nanmedian if np.isnan(picked).any() else np.median)(picked, axis=-1)
        return np.array([statistic(row[~np.isnan(row)]) for row in np.atleast_2d(picked)]).reshape(drawn.shape[:-1])

    bounds = stats.bootstrap(
        (np.arange(len(members)),),
        of_draws,
        vectorized=True,
        method="percentile",  # BCa is undefined where the jackknife is constant, as it often is for a median
        n_resamples=resamples,
        confidence_level=confidence,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(bounds.low), float(bounds.high))


def bootstrap_of_totals(
    counts: np.ndarray,
    combine: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int,
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Return a statistic of summed counts, such as a ratio of token rates, with a percentile bootstrap interval.

    Args:
        counts: (n, k) what was counted in each measurement; n is at least 1.
        combine: maps (…, k) sums to (…) estimates.
        seed, groups, confidence, resamples: see `paired_bootstrap`.

    Returns:
        The estimate and its bounds; with a single group all three are equal.
    """
    rows = {group: row for row, group in enumerate(dict.fromkeys(groups))}
    totals = np.zeros((len(rows), counts.shape[1]))
    np.add.at(totals, [rows[group] for group in groups], counts)
    estimate = float(combine(totals.sum(0)))
    if len(rows) == 1:
        return Interval(estimate, estimate, estimate)
    bounds = stats.bootstrap(
        (np.arange(len(rows)),),
        lambda drawn, axis=-1: combine(totals[drawn.astype(np.intp)].sum(-2)),
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        confidence_level=confidence,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(bounds.low), float(bounds.high))


def median_and_p95(values: Sequence[float]) -> dict[str, float]:
    """Return `{median, p95}` of at least one value, in its unit; one value in twenty exceeds p95."""
    median, p95 = np.quantile(np.asarray(values, dtype=np.float64), (0.5, 0.95)).tolist()
    return {"median": median, "p95": p95}


def _members(values: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Return values[n] as rows[group, member], short rows padded with NaN; groups in order of first appearance."""
    if groups is None:
        return values[:, None]
    rows: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values.tolist(), strict=True):
        rows.setdefault(group, []).append(value)
    table = np.full((len(rows), max(map(len, rows.values()))), np.nan)
    for row, members in zip(table, rows.values(), strict=True):
        row[: len(members)] = members
    return table
