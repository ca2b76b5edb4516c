"""Say in a line why a drafter won or lost against plain decoding: what a step writes, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REST = ("commit", "other")


def reason(result: Mapping[str, Any]) -> str | None:
    """Return the line; None for plain decoding itself, and if steps or times were not recorded.

    A speedup over all tokens is the number of tokens that a step writes, divided by what the step costs in steps of
    plain decoding. A step costs the drafting, the forward that verifies, and the rest (committing, bookkeeping).

    Args:
        result: what `summary.summarize` returns.
    """
    plain, steps, phases = result["baseline_tokens_per_s"], result.get("steps"), result["phases_s"]
    depths = result["acceptance_by_depth"]
    offered = sum(depth["offered"] for depth in depths)
    if (
        result.get("drafter") == "none"
        or not plain
        or not steps
        or not result["new_tokens"]
        or not phases.get("verify")
    ):
        return None
    if not offered:
        return "why: no draft was found, or none was expected to pay: all steps were those of plain decoding"
    accepted = sum(depth["accepted"] for depth in depths) / offered
    written = result["new_tokens"] / steps
    draft, verify, rest = (
        sum(phases.get(name, 0.0) for name in names) / steps * plain for names in (("draft",), ("verify",), REST)
    )
    cost = draft + verify + rest
    verdict = "won" if written > 1.005 * cost else "lost" if written < 0.995 * cost else "broke even"
    line = (
        f"why it {verdict}: a step writes {written:.2f} tokens ({accepted:.0%} of the drafted depths are accepted) and "
        f"costs {cost:.2f} plain steps (drafting {draft:.2f}, verifying {verify:.2f}, the rest {rest:.2f})"
    )
    if verdict != "lost":
        return line
    dearest = max(
        {"drafting": draft, "verifying a block": verify - 1, "the rest": rest}.items(), key=lambda each: each[1]
    )
    return (
        f"{line}; what it costs more is mostly {dearest[0]}; it breaks even at {cost:.2f} tokens a step, or if a step "
        f"costs {written:.2f}"
    )
