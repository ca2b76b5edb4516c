"""Measures under the names that the field uses; docs/definitions.md has each formula, and who calls it what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from selfdraft.tracking.files.records import Line
from selfdraft.tracking.numbers.pace import Pace, baseline_pace, drafter_pace, ratio, total

WAITING = {"p50": 0.5, "p90": 0.9, "p99": 0.99}  # quantiles of seconds: high ones are the bad ones
RATES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}  # quantiles of rates: low ones are the bad ones


def field_terms(lines: Sequence[Line]) -> dict[str, Any]:
    """Return what the lines of an evaluation say about drafts, waiting and energy.

    Returns:
        `acceptance_length`: tokens that a step writes, `mean` and `histogram` (the number of steps by tokens, from 0).
        `draft_tokens`: `drafted` candidates, those `accepted`, and the `wasted` rest.
        `conditional_acceptance`: by depth, the share of the accepted drafts of the depth before that go on; `joint`: by
        depth, the share of all steps whose drafts were accepted so far.
        `oracle`: see `_oracle`.
        `ttft_s`, `tpot_s`: seconds to the first tokens, and seconds per token after these, over turns;
        `inter_token_s`: seconds between outputs, over steps. All with `p50`, `p90` and `p99`, or None if not recorded.
        `output_token_throughput`: tokens per second of all turns, prefills included; `e2e_output_token_throughput`: a
        turn's tokens per second of its latency, with `p10`, `p50` and `p90` over turns.
        `energy`: see `_energy`.
    """
    steps = [step for line in lines for step in _steps(line)]
    written = Counter(len(step[2]) + (step[3] is not None) for step in steps)
    count = sum(written.values())
    drafted = sum(len(step[0]) - len(_probes(step)) for step in steps)
    accepted = sum(len(step[2]) for step in steps)
    return {
        "acceptance_length": {
            "mean": sum(tokens * n for tokens, n in written.items()) / count if count else None,
            "histogram": [written[tokens] for tokens in range(max(written, default=-1) + 1)],
        },
        "draft_tokens": {"drafted": drafted, "accepted": accepted, "wasted": drafted - accepted},
        **_by_depth(steps),
        "oracle": _oracle(lines),
        "ttft_s": _quantiles([line["first_token_s"] for line in lines if line.get("first_token_s") is not None]),
        "tpot_s": _quantiles([seconds for line in lines if (seconds := _per_token(line)) is not None]),
        "inter_token_s": _quantiles([seconds for line in lines for seconds in line.get("step_s", ())[1:]]),
        "output_token_throughput": Pace(sum(map(_written, lines)), sum(map(_elapsed, lines))).rate,
        "e2e_output_token_throughput": _quantiles(
            [rate for line in lines if (rate := Pace(_written(line), line["latency_s"]).rate) is not None], RATES
        ),
        "energy": _energy(lines),
    }


def _steps(line: Line) -> list[Sequence[Any]]:
    """Return the steps of a turn, `[tokens, parents or None, accepted nodes, bonus, source, probes or None]`."""
    return [step for step in line.get("steps", ()) if len(step) > 3]


def _probes(step: Sequence[Any]) -> Sequence[int]:
    """Return the nodes of a step that may not be accepted."""
    return (step[5] if len(step) > 5 else None) or ()


def _depth(step: Sequence[Any]) -> int:
    """Return how deep the candidates of a step reach: the most of its draft that could have been accepted."""
    probes = set(_probes(step))
    depths: list[int] = []
    for node in range(len(step[0])):
        parent = node - 1 if step[1] is None else step[1][node]
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return max((depth for node, depth in enumerate(depths) if node not in probes), default=0)


def _by_depth(steps: Sequence[Sequence[Any]]) -> dict[str, list[float]]:
    """Return conditional and joint acceptance by depth, over the steps that had a draft."""
    reached = Counter(len(step[2]) for step in steps if len(step[0]) > len(_probes(step)))
    deepest, every = max(reached, default=0), sum(reached.values())
    at_least = [sum(n for depth, n in reached.items() if depth >= d) for d in range(deepest + 1)]
    return {
        "conditional_acceptance": [after / before for before, after in pairwise(at_least)],
        "joint_acceptance": [n / every for n in at_least[1:]],
    }


def _oracle(lines: Sequence[Line]) -> dict[str, float | None] | None:
    """Return what this run would have reached if every draft had been accepted to its deepest candidate.

    Every step keeps its draft and its seconds, and writes as many tokens as the draft is deep, and the bonus token.

    Returns:
        `tokens_per_step`; `speedup` over plain decoding, over all tokens; `reached`: the share of both that the run
        has. None if nothing was drafted, or steps were not recorded.
    """
    lines = [line for line in lines if _steps(line)]
    depths = [_depth(step) for line in lines for step in _steps(line)]
    if not any(depths):
        return None
    most, drafter = sum(depths) + len(depths), total(lines, drafter_pace)
    return {
        "tokens_per_step": most / len(depths),
        "speedup": ratio(Pace(most, drafter.seconds), total(lines, baseline_pace)),
        "reached": drafter.tokens / most,
    }


def _written(line: Line) -> int:
    """Return how many tokens an answer has; `new_tokens` of another engine leaves those of its first forward out."""
    return len(line["output_ids"])


def _elapsed(line: Line) -> float:
    """Return a turn's share of the seconds that passed, prefill included; others wait during a prompt's latency too."""
    phases = line["phases_s"]
    return phases["prefill"] + line["decode_s"] if "prefill" in phases else line["latency_s"]


def _per_token(line: Line) -> float | None:
    """Return the seconds per token after the first step's tokens."""
    if line.get("first_token_s") is None or not line.get("steps"):
        return None
    first = line["steps"][0]
    tokens = line["new_tokens"] - len(first[2]) - (first[3] is not None)
    return (line["latency_s"] - line["first_token_s"]) / tokens if tokens > 0 else None


def _energy(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the joules per token, of the drafter and of plain decoding, and where they come from.

    Returns:
        `joules_per_token`: `drafter` and `baseline`; prefills count; None if not measured. `sources`: the parts of the
        machine whose counters were read. `not_readable`: why there is no number, or which part it lacks; else empty.
    """
    notes = [line["energy"] for line in lines if "energy" in line]
    reasons = list(dict.fromkeys(note["not_readable"] for note in notes if note.get("not_readable")))
    found = {
        "drafter": _joules_per_token([(line.get("joules"), _written(line)) for line in lines]),
        "baseline": _joules_per_token([(line.get("baseline_joules"), line["baseline_new_tokens"]) for line in lines]),
    }
    if found["drafter"] is None and not reasons:
        reasons = ["the counters did not move" if notes else "not recorded"]
    return {
        "joules_per_token": found,
        "sources": list(dict.fromkeys(source for note in notes for source in note.get("sources", ()))),
        "not_readable": "; ".join(reasons),
    }


def _joules_per_token(turns: Sequence[tuple[float | None, int]]) -> float | None:
    read = [(joules, tokens) for joules, tokens in turns if joules is not None]
    joules, tokens = sum(joules for joules, _ in read), sum(tokens for _, tokens in read)
    return joules / tokens if joules and tokens else None


def _quantiles(values: Sequence[float], which: dict[str, float] = WAITING) -> dict[str, float] | None:
    if not values:
        return None
    return dict(zip(which, np.quantile(np.asarray(values), list(which.values())).tolist(), strict=True))
