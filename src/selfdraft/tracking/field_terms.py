"""Measures under the names that the field uses; docs/definitions.md has each formula, and who calls it what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from selfdraft.tracking.records import Line


def field_terms(lines: Sequence[Line]) -> dict[str, Any]:
    """Return what the lines of an evaluation say about drafts and about waiting.

    Returns:
        `acceptance_length`: tokens that a step writes, `mean` and `histogram` (the number of steps by tokens, from 0).
        `draft_tokens`: `drafted` nodes, those `accepted`, and the `wasted` rest.
        `conditional_acceptance`: by depth, the share of the accepted drafts of the depth before that go on; `joint`: by
        depth, the share of all steps whose drafts were accepted so far.
        `ttft_s`, `tpot_s`: seconds to the first tokens, and seconds per token after these, over turns;
        `inter_token_s`: seconds between outputs, over steps. All with `p50`, `p90` and `p99`, or None if not recorded.
    """
    steps = [step for line in lines for step in line.get("steps", ())]
    written = Counter(len(step[2]) + (step[3] is not None) for step in steps if len(step) > 3)
    count = sum(written.values())
    drafted = sum(len(step[0]) for step in steps if step)
    accepted = sum(len(step[2]) for step in steps if len(step) > 2)
    return {
        "acceptance_length": {
            "mean": sum(tokens * n for tokens, n in written.items()) / count if count else None,
            "histogram": [written[tokens] for tokens in range(max(written, default=-1) + 1)],
        },
        "draft_tokens": {"drafted": drafted, "accepted": accepted, "wasted": drafted - accepted},
        **_by_depth(steps),
        "ttft_s": _quantiles([line["first_token_s"] for line in lines if line.get("first_token_s") is not None]),
        "tpot_s": _quantiles([seconds for line in lines if (seconds := _per_token(line)) is not None]),
        "inter_token_s": _quantiles([seconds for line in lines for seconds in line.get("step_s", ())[1:]]),
    }


def _by_depth(steps: Sequence[Sequence[Any]]) -> dict[str, list[float]]:
    """Return conditional and joint acceptance by depth, over the steps that had a draft."""
    reached = Counter(len(step[2]) for step in steps if len(step) > 2 and step[0])
    deepest, every = max(reached, default=0), sum(reached.values())
    at_least = [sum(n for depth, n in reached.items() if depth >= d) for d in range(deepest + 1)]
    return {
        "conditional_acceptance": [after / before for before, after in pairwise(at_least)],
        "joint_acceptance": [n / every for n in at_least[1:]],
    }


def _per_token(line: Line) -> float | None:
    """Return the seconds per token after the first step's tokens."""
    if line.get("first_token_s") is None or not line.get("steps"):
        return None
    first = line["steps"][0]
    tokens = line["new_tokens"] - len(first[2]) - (first[3] is not None)
    return (line["latency_s"] - line["first_token_s"]) / tokens if tokens > 0 else None


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return dict(zip(("p50", "p90", "p99"), np.quantile(np.asarray(values), (0.5, 0.9, 0.99)).tolist(), strict=True))
