"""Reduce the lines of prompts.jsonl to result.json: counts and seconds are summed first, and divided once."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from selfdraft.core.statistics import bootstrap_of_totals, median_and_p95, paired_bootstrap
from selfdraft.tracking.files.records import Line, key
from selfdraft.tracking.numbers.field_terms import field_terms
from selfdraft.tracking.numbers.lines import measured
from selfdraft.tracking.numbers.pace import Contender, Pace, baseline_pace, drafter_pace, ratio, speedup_of, total

__all__ = ["mismatches", "speedup_of", "speedup_over_all", "summarize"]

VERDICTS = ("exact", "tie", "mismatch")
FEW_OFFERS = 20  # a share of fewer offers than this says little, and is shown in grey
CONTEXTS = (0, 256, 1024, 4096, 16384)  # the least prompt tokens of each bucket of `by_context`
BY_CONTEXT = (
    "turns",
    "new_tokens",
    "tokens_per_forward",
    "decode_tokens_per_s",
    "baseline_tokens_per_s",
    "speedup",
    "speedup_total",
    "speedup_total_interval",
)


def summarize(
    lines: Sequence[Line], *, task: str, model: str, drafter: str, dataset: str, seed: int, **labels: Any
) -> dict[str, Any]:
    """Reduce an evaluation to the content of result.json.

    Args:
        lines: all lines of the evaluation, in any order (several processes finish in any order).
        task, model, drafter, dataset: their names.
        seed: of the bootstrap.
        labels: further facts that are copied to the result, e.g. dtype="bfloat16".

    Returns:
        The labels; the reduced measures of all lines; the same measures under `by_category` for each family; some of
        them under `by_context` for each bucket of prompt lengths that has turns, with the run's batch size; and under
        `references` every other contender against the drafter and against the baseline, on the turns it decoded,
        with the verdicts of comparing our baseline's text with its own.
        `left_out` counts the turns that were not decoded, which no measure includes.
        Rates are tokens per second of decoding time summed over processes, so they are those of one process.
        In a batch the lines have shares of its seconds, so these rates are the batch's throughput.
        `speedup_total_interval` is the speedup that is shown everywhere: the ratio of the rates over all tokens, with
        its interval, drawn by prompt. `speedup` is the median paired ratio over turns. None if nothing can be paired.

    Raises:
        ValueError: there are no lines of decoded turns.
    """
    if not measured(lines):
        raise ValueError("there is nothing to summarize: no prompt was finished")
    families = list(dict.fromkeys(line["family"] for line in measured(lines)))
    # The bootstrap's draws must not depend on the order in which processes finished.
    lines = sorted(lines, key=key)
    names = sorted({name for line in measured(lines) for name in line.get("references") or {}})
    return {
        "task": task,
        "model": model,
        "drafter": drafter,
        "dataset": dataset,
        "seed": seed,
        **labels,
        **_measures(lines, seed),
        "by_category": {
            family: _measures([line for line in lines if line["family"] == family], seed) for family in families
        },
        "by_context": _by_context(lines, seed, labels.get("batch_size", 1)),
        "references": {name: _reference(lines, name, seed) for name in names},
    }


def _measures(every: Sequence[Line], seed: int) -> dict[str, Any]:
    lines = measured(every)
    new_tokens = sum(line["new_tokens"] for line in lines)
    target_forwards = sum(line["target_forwards"] for line in lines)
    drafter, baseline = total(lines, drafter_pace), total(lines, baseline_pace)
    verdicts = Counter(line["lossless"]["verdict"] for line in lines)
    return {
        "prompts": len({line["id"] for line in lines}),
        "turns": len(lines),
        "left_out": len(every) - len(lines),
        "new_tokens": new_tokens,
        "steps": sum(len(line.get("steps", ())) for line in lines),
        "target_forwards": target_forwards,
        "tokens_per_forward": new_tokens / target_forwards if target_forwards else None,
        "decode_tokens_per_s": drafter.rate,
        "baseline_tokens_per_s": baseline.rate,
        "speedup": _paired(lines, drafter_pace, baseline_pace, seed),
        "speedup_total": ratio(drafter, baseline),
        "speedup_total_interval": speedup_over_all(lines, seed),
        "throughput": {"drafter": drafter.rate, "baseline": baseline.rate},
        "latency_s": {
            "drafter": median_and_p95([line["latency_s"] for line in lines]),
            "baseline": median_and_p95([line["baseline_latency_s"] for line in lines]),
        },
        "lossless": {verdict: verdicts[verdict] for verdict in VERDICTS}
        | ({"sampled": verdicts["sampled"]} if verdicts["sampled"] else {}),
        "mismatch_reasons": dict(
            Counter(_reason(line["lossless"]) for line in lines if line["lossless"]["verdict"] == "mismatch")
        ),
        "forward_distance": _forward_distance(lines),
        "ties_by_float32": _ties_by_float32(lines),
        "acceptance_by_depth": _acceptance(lines),
        **field_terms(lines),
        "diagnostics": _histograms([line.get("diagnostics") or {} for line in lines]),
        "phases_s": _summed([line["phases_s"] for line in lines]),
        "peak_memory_mb": max(line["peak_memory_mb"] for line in lines),
        "guard": {
            "steps": sum(len(line.get("steps", ())) for line in lines),
            "stood_down": sum(line.get("stood_down", 0) for line in lines),
        },
        "peak_memory_by_phase_mb": _peaks([line.get("peak_memory_by_phase_mb", {}) for line in lines]),
    }


def _by_context(lines: Sequence[Line], seed: int, batch_size: int) -> dict[str, dict[str, Any]]:
    """Return the measures `BY_CONTEXT` of each bucket that has turns, from short prompts to long ones."""
    buckets: dict[str, list[Line]] = {}
    for line in sorted(measured(lines), key=lambda line: len(line["prompt_ids"])):
        buckets.setdefault(context_bucket(len(line["prompt_ids"])), []).append(line)
    reduced = {name: _measures(turns, seed) for name, turns in buckets.items()}
    return {
        bucket: {"batch_size": batch_size, **{name: measures[name] for name in BY_CONTEXT}}
        for bucket, measures in reduced.items()
    }


def context_bucket(tokens: int) -> str:
    """Return the bucket of a prompt of so many tokens, the history of a conversation included: `256-1023`, `16384+`."""
    at = bisect_right(CONTEXTS, tokens)
    low = CONTEXTS[at - 1]
    return f"{low}+" if at == len(CONTEXTS) else f"{low}-{CONTEXTS[at] - 1}"


def _peaks(peaks: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the highest value of each phase."""
    return {phase: max(p.get(phase, 0.0) for p in peaks) for phase in dict.fromkeys(name for p in peaks for name in p)}


def mismatches(lines: Sequence[Line]) -> list[str]:
    """Name every turn with a wrong text, and the reason: the drafter's text, or our baseline's beside a reference."""
    found = []
    for line in lines:
        beside = {name: reference.get("lossless") for name, reference in (line.get("references") or {}).items()}
        for name, certificate in {"": line["lossless"], **beside}.items():
            if certificate is not None and certificate["verdict"] == "mismatch":
                whose = f", plain decoding beside {name}" if name else ""
                found.append(f"{line['id']}/{line['turn']} ({_reason(certificate)}{whose})")
    return found


def _reason(certificate: Mapping[str, Any]) -> str:
    """Return why a certificate is a mismatch, in one word (see `core.certificate.REASONS`)."""
    return certificate.get("reason") or "token"


def _forward_distance(lines: Sequence[Line]) -> dict[str, float] | None:
    """Return the distance of our forwards from the stock model's, in sigmas, and its ceiling, for the worst line."""
    certificates = [line["lossless"] for line in lines]
    compared = [found for found in certificates if found.get("ceiling") and found.get("distance") is not None]
    if not compared:
        return None
    worst = max(compared, key=lambda found: found["distance"] / found["ceiling"])
    return {"sigmas": worst["distance"], "ceiling": worst["ceiling"]}


def _ties_by_float32(lines: Sequence[Line]) -> dict[str, int]:
    """Return in how many ties float32 prefers the baseline's token, and in how many the drafter's."""
    checks = (line["lossless"].get("float32") for line in lines if line["lossless"]["verdict"] == "tie")
    prefers = Counter(check["prefers"] for check in checks if check)
    return {side: prefers[side] for side in ("baseline", "drafter")}


def _reference(lines: Sequence[Line], name: str, seed: int) -> dict[str, Any]:
    """Return the measures of one other contender, on the turns that it decoded too."""
    lines = [line for line in measured(lines) if name in (line.get("references") or {})]

    def pace(line: Line) -> Pace:
        return Pace(line["references"][name]["new_tokens"], line["references"][name]["decode_s"])

    beside = [line["references"][name].get("lossless") for line in lines]
    verdicts = Counter(certificate["verdict"] for certificate in beside if certificate)
    return {
        "turns": len(lines),
        "same_as_baseline": sum(bool(line["references"][name].get("same_as_baseline")) for line in lines),
        "lossless": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "tokens_per_s": total(lines, pace).rate,
        "speedup_of_drafter": _paired(lines, drafter_pace, pace, seed),
        "baseline_vs_reference": _paired(lines, baseline_pace, pace, seed),
    }


def _paired(lines: Sequence[Line], ours: Contender, theirs: Contender, seed: int) -> dict[str, float | None]:
    pairs = [(line["id"], ratio(ours(line), theirs(line))) for line in lines]
    pairs = [(prompt, paired) for prompt, paired in pairs if paired is not None]
    if not pairs:
        return {"median": None, "low": None, "high": None}
    prompts, ratios = zip(*pairs, strict=True)
    return paired_bootstrap(ratios, seed=seed, groups=prompts)._asdict()


def speedup_over_all(lines: Sequence[Line], seed: int) -> dict[str, float | None]:
    """Return the ratio of summed rates to those of plain decoding, with its interval."""
    timed = [line for line in lines if speedup_of(line) is not None]
    if not timed:
        return {"median": None, "low": None, "high": None}
    names = ("new_tokens", "decode_s", "baseline_new_tokens", "baseline_decode_s")

    def of_sums(sums: np.ndarray) -> np.ndarray:
        tokens, seconds, plain_tokens, plain_seconds = np.moveaxis(sums, -1, 0)
        return tokens / seconds / (plain_tokens / plain_seconds)

    counted = np.array([[float(line[name]) for name in names] for line in timed])
    return bootstrap_of_totals(counted, of_sums, seed=seed, groups=[line["id"] for line in timed])._asdict()


def _acceptance(lines: Sequence[Line]) -> list[dict[str, int]]:
    """Sum the counts by depth; turns that never drafted so deep add nothing."""
    by_depth = zip_longest(*(line["acceptance_by_depth"] for line in lines), fillvalue={"offered": 0, "accepted": 0})
    return [{name: sum(counts[name] for counts in depth) for name in ("offered", "accepted")} for depth in by_depth]


def _summed(phases: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in phases for name in each)
    return {name: sum(each.get(name, 0.0) for each in phases) for name in names}


def _histograms(parts: Sequence[dict[str, list[int]]]) -> dict[str, list[int]]:
    """Sum the histograms of each name, bin by bin."""
    names = dict.fromkeys(name for each in parts for name in each)
    return {
        name: [sum(bins) for bins in zip_longest(*(each.get(name, []) for each in parts), fillvalue=0)]
        for name in names
    }
