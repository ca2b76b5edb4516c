"""What a logger gets after every prompt and every step, so that one can watch a run and stop a bad one."""

from __future__ import annotations

from collections.abc import Sequence

from selfdraft.decoding.record import Generation
from selfdraft.tracking.files.records import Line
from selfdraft.tracking.numbers.lines import CONTENDERS
from selfdraft.tracking.numbers.pace import drafter_pace, speedup_of, total
from selfdraft.tracking.numbers.summary import speedup_over_all

TURN = "turn"  # the axis: turns that are measured so far


def after_a_turn(lines: Sequence[Line], seed: int) -> dict[str, float]:
    """Return the numbers of the last line, and the running ones of all lines so far.

    Args:
        lines: of prompts.jsonl, in the order in which they were measured; at least one.
        seed: of the bootstrap of the running interval.
    """
    last = lines[-1]
    if CONTENDERS in last:
        return _of_contenders(lines)
    interval = speedup_over_all(lines, seed)
    offered = sum(depth["offered"] for line in lines for depth in line["acceptance_by_depth"])
    accepted = sum(depth["accepted"] for line in lines for depth in line["acceptance_by_depth"])
    forwards = sum(line["target_forwards"] for line in lines)
    found = {
        "prompt/tokens_per_s": drafter_pace(last).rate,
        "prompt/speedup": speedup_of(last),
        "running/tokens_per_s": total(lines, drafter_pace).rate,
        "running/speedup": interval["median"],
        "running/speedup_low": interval["low"],
        "running/speedup_high": interval["high"],
        "running/tokens_per_forward": sum(line["new_tokens"] for line in lines) / forwards if forwards else None,
        "running/acceptance": accepted / offered if offered else None,
        "peak_memory_mb": last.get("peak_memory_mb"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def after_a_step(generation: Generation) -> dict[str, float]:
    """Return the numbers of the last step of an answer, and the running ones of all its steps so far."""
    drafted, _, accepted, bonus, *_ = generation.steps[-1]
    counts, seconds = generation.counts, generation.decode_s
    found = {
        "step/tokens": len(accepted) + (bonus is not None),
        "step/drafted": len(drafted),
        "step/accepted": len(accepted),
        "step/seconds": generation.step_s[-1],
        "running/tokens_per_forward": counts.new_tokens / counts.target_forwards,
    }
    return found | ({"running/tokens_per_s": counts.new_tokens / seconds} if seconds else {})


def _of_contenders(lines: Sequence[Line]) -> dict[str, float]:
    """Return the running tokens per second of every contender of a comparison."""
    sums: dict[str, tuple[float, float]] = {}
    for line in lines:
        for name, part in line[CONTENDERS].items():
            tokens, seconds = sums.get(name, (0.0, 0.0))
            sums[name] = tokens + part["new_tokens"], seconds + part["decode_s"]
    return {f"running/tokens_per_s/{name}": tokens / seconds for name, (tokens, seconds) in sums.items() if seconds}
