"""From results to the rows of the leaderboard: one for each contender of each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from selfdraft.tracking.numbers.comparison import PLAIN
from selfdraft.tracking.numbers.lines import CONTENDERS
from selfdraft.tracking.numbers.summary import FEW_OFFERS
from selfdraft.tracking.report.runs import RunFiles

Measures = Mapping[str, Any]
"""What `summary.summarize` returns of one contender."""

TOLD = ("model", "drafter", "decoding", "dataset", "hardware")  # groups of options that a label names
MOST_TOLD = 3  # options in a label; where more differ, the folder's name tells runs apart


class Speedup(NamedTuple):
    """The speedup over all tokens, and the bounds of its 95 % interval; None where it is not known.

    `prompts` is the number of prompts that it is of: that of one prompt has no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    prompts: int

    @property
    def has_interval(self) -> bool:
        """Return whether there is an interval to draw."""
        return None not in (self.value, self.low, self.high) and self.low != self.high


@dataclass(frozen=True)
class Row:
    """One contender of one run.

    Attributes:
        label: its name on the page, different from every other one.
        contender: its name in the run. run: the name of the run's folder.
        measures: what was measured of it; with `why`, and in a comparison `startup`.
        result: of the whole run, for what all of its contenders share.
    """

    label: str
    contender: str
    run: str
    measures: Measures
    result: Mapping[str, Any]

    @property
    def is_plain(self) -> bool:
        """Return whether this is plain decoding, with which all others are compared."""
        return self.contender == PLAIN

    @property
    def speedup(self) -> Speedup:
        """Return the speedup over all tokens."""
        return speedup_of(self.measures)

    @property
    def startup(self) -> Mapping[str, Any]:
        """Return what the contender needed before its first answer; empty for evaluations."""
        return self.measures.get("startup") or {}

    @property
    def peak_memory_mb(self) -> float | None:
        """Return the peak memory of its process, or while it decoded."""
        return self.startup.get("peak_memory_mb", self.measures.get("peak_memory_mb"))


def speedup_of(measures: Measures) -> Speedup:
    """Return the speedup over all tokens; results of earlier versions may have no interval of it."""
    found = measures.get("speedup_total_interval") or {}
    value = found.get("median", measures.get("speedup_total"))
    return Speedup(value, found.get("low"), found.get("high"), measures["prompts"])


def rows_of(runs: Sequence[RunFiles]) -> list[Row]:
    """Return a row for each contender of each run, the fastest first."""
    unnamed = [(run, name, measures) for run in runs for name, measures in _contenders(run)]
    labels = _labels([(run, name) for run, name, _ in unnamed])
    rows = [
        Row(label, name, run.name, measures, run.result)
        for (run, name, measures), label in zip(unnamed, labels, strict=True)
    ]
    return sorted(rows, key=lambda row: -(row.speedup.value or 0.0))


def families_of(rows: Sequence[Row]) -> list[str]:
    """Return the families of all rows, in the order of the runs."""
    return list(dict.fromkeys(family for row in rows for family in row.measures["by_category"]))


def acceptance_of(measures: Measures) -> list[dict[str, Any]]:
    """Return for each depth: `offered`, `accepted`, `share`, and whether there are enough offers to say anything."""
    return [
        {**depth, "share": depth["accepted"] / depth["offered"], "known": depth["offered"] >= FEW_OFFERS}
        for depth in measures["acceptance_by_depth"]
        if depth["offered"]
    ]


def phases_of(measures: Measures) -> dict[str, tuple[float, float]]:
    """Return for each phase its milliseconds per new token, and its share of all."""
    phases, tokens = measures["phases_s"], measures["new_tokens"]
    whole = sum(phases.values())
    if not whole or not tokens:
        return {}
    return {name: (1e3 * seconds / tokens, seconds / whole) for name, seconds in phases.items()}


def _contenders(run: RunFiles) -> Iterator[tuple[str, Measures]]:
    if CONTENDERS in run.result:
        yield from run.result[CONTENDERS].items()
    elif "drafter" in run.result:
        yield run.result["drafter"], run.result


def _labels(contenders: Sequence[tuple[RunFiles, str]]) -> list[str]:
    """Return names that differ: contenders that are called the same get the options in which their runs differ."""
    count = Counter(name for _, name in contenders)
    leaves = {id(run): dict(_leaves(_told(run.config))) for run, name in contenders if count[name] > 1}
    differing = {
        name: _differing([leaves[id(run)] for run, same in contenders if same == name])
        for name, runs in count.items()
        if runs > 1
    }
    labels = []
    for run, name in contenders:
        if count[name] == 1:
            labels.append(name)
            continue
        own = leaves[id(run)]
        told = [key for key in own if key in differing[name]]
        options = ", ".join(f"{_short(key)}={own[key]}" for key in told)
        labels.append(f"{name} ({options})" if told and len(told) <= MOST_TOLD else f"{name} ({run.name})")
    twice = Counter(labels)
    return [
        f"{label} in {run.name}" if twice[label] > 1 and run.name not in label else label
        for label, (run, _) in zip(labels, contenders, strict=True)
    ]


def _differing(leaves: Sequence[Mapping[str, str]]) -> set[str]:
    """Return the options that do not have the same value in all of these runs; a run may lack an option."""
    values: dict[str, set[str]] = {}
    for each in leaves:
        for key, value in each.items():
            values.setdefault(key, set()).add(value)
    count = Counter(key for each in leaves for key in each)
    return {key for key, found in values.items() if len(found) > 1 or count[key] < len(leaves)}


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run that may be in a label."""
    return {group: options for group, options in config.items() if group in TOLD}


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, str(config)


def _short(key: str) -> str:
    """Return an option's name without its group."""
    return key.split(".", 1)[-1]
