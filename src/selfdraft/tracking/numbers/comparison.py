"""Reduce the lines of a comparison: each contender's are turned into those of an evaluation against plain decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfdraft.tracking.files.records import Line, key
from selfdraft.tracking.numbers.lines import CONTENDERS, LEFT_OUT, measured
from selfdraft.tracking.numbers.reason import reason
from selfdraft.tracking.numbers.summary import mismatches, summarize

PLAIN = "none"  # the contender with which every other one is compared


def contenders_in(lines: Sequence[Line]) -> list[str]:
    """Return the names of the contenders, in the order in which they were given."""
    return list(dict.fromkeys(name for line in measured(lines) for name in line[CONTENDERS]))


def as_evaluation(line: Line, name: str) -> Line:
    """Return a line as task=evaluate writes it, with contender `name` as the drafter."""
    if LEFT_OUT in line:
        return line
    plain, mine = line[CONTENDERS][PLAIN], line[CONTENDERS][name]
    return {
        **{field: value for field, value in line.items() if field != CONTENDERS},
        **mine,
        "baseline_new_tokens": plain["new_tokens"],
        "baseline_decode_s": plain["decode_s"],
        "baseline_latency_s": plain["latency_s"],
        **({"baseline_joules": plain["joules"]} if "joules" in plain else {}),
        **({"baseline_output_ids": line["output_ids"]} if "output_ids" in mine else {}),
    }


def summarize_comparison(lines: Sequence[Line], *, seed: int, **labels: Any) -> dict[str, Any]:
    """Reduce a comparison to the content of result.json.

    Args:
        lines: all lines of the comparison, in any order. seed: of the bootstrap.
        labels: task, model, dataset, and further facts that are copied to the result.

    Returns:
        The labels, the counts of prompts and turns, and under `contenders` for each one what `summarize` returns for an
        evaluation of it. Beside that: `why` it won or lost, or died.

    Raises:
        ValueError: there are no lines of decoded turns.
    """
    lines = sorted(lines, key=key)
    found: dict[str, dict[str, Any]] = {}
    for name in contenders_in(lines):
        own = [as_evaluation(line, name) for line in lines]
        summary = summarize(own, seed=seed, **{**labels, "drafter": name})
        for label in (*labels, "drafter", "seed", "references"):
            summary.pop(label, None)
        done = measured(own)
        failures = [line["failed"] for line in done if "failed" in line]
        summary["why"] = f"it died: {failures[0]}" if failures else reason({**summary, "drafter": name})
        found[name] = summary
    first = next(iter(found.values()))
    counts = {name: first[name] for name in ("prompts", "turns", "left_out", "peak_memory_mb")}
    return {**labels, "seed": seed, **counts, CONTENDERS: found}


def ranking(result: Mapping[str, Any]) -> list[str]:
    """Return the contenders' names, the fastest over all tokens first."""
    rates = {name: found["decode_tokens_per_s"] or 0.0 for name, found in result[CONTENDERS].items()}
    return sorted(rates, key=lambda name: -rates[name])


def by_weights(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names in each class of weights, the fastest first; plain decoding's class comes first.

    Speeds with other weights are shown in groups of their own: fewer bits are read faster, and the text may differ.
    """
    found = result[CONTENDERS]
    own = found[PLAIN].get("startup", {}).get("weights", "")
    groups: dict[str, list[str]] = {own: []}
    for name in ranking(result):
        groups.setdefault(found[name].get("startup", {}).get("weights", own), []).append(name)
    return groups


def wrong_texts(lines: Sequence[Line], names: Sequence[str]) -> list[str]:
    """Name every wrong text of these contenders, with its prompt and the reason."""
    return [f"{name}: {wrong}" for name in names for wrong in mismatches([as_evaluation(x, name) for x in lines])]
