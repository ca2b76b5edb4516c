"""What W&B shows of a result: the numbers in its table of runs, charts, and the table of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfdraft.tracking.files.records import Line
from selfdraft.tracking.numbers.lines import measured
from selfdraft.tracking.numbers.summary import speedup_of

if TYPE_CHECKING:
    import wandb

# What a table of runs is sorted by. W&B's summary is that table; everything else is in result.json and in charts.
SUMMARY = (
    "objective",
    "speedup_total",
    "speedup_total_interval/low",
    "speedup_total_interval/high",
    "speedup/median",
    "tokens_per_forward",
    "acceptance_length/mean",
    "step_cost",
    "phase/draft",
    "phase/verify",
    "phase/rest",
    "decode_tokens_per_s",
    "baseline_tokens_per_s",
    "lossless/exact",
    "lossless/tie",
    "lossless/mismatch",
    "prompts",
    "new_tokens",
    "peak_memory_mb",
    "energy/joules_per_token/drafter",
    "oracle/reached",
    "score/drafter",
)
MAX_SUMMARY = 20  # numbers of a task that measures other things


def for_the_table_of_runs(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of `SUMMARY`; of a task that measures none of them, the first numbers."""
    known = {**numbers, **why(numbers)}
    return {name: known[name] for name in SUMMARY if name in known} or dict(list(numbers.items())[:MAX_SUMMARY])


def why(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return what explains a speedup: the cost of a step, and the shares of its phases.

    Returns:
        step_cost: seconds of a step, in those of plain decoding's forward. Drafts pay where more tokens are written per
            forward than that.
        phase/draft, phase/verify, phase/rest: shares of the decoding time, whose sum is 1.
    """
    found: dict[str, float] = {}
    if numbers.get("speedup_total") and numbers.get("tokens_per_forward"):
        found["step_cost"] = numbers["tokens_per_forward"] / numbers["speedup_total"]
    seconds = {name: numbers.get(f"phases_s/{name}", 0.0) for name in ("draft", "verify", "commit", "other")}
    if whole := sum(seconds.values()):
        found |= {f"phase/{name}": seconds[name] / whole for name in ("draft", "verify")}
        found["phase/rest"] = (seconds["commit"] + seconds["other"]) / whole
    return found


def charts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return bars of the speedup by family, and of how many steps wrote how many tokens."""
    import wandb

    found: dict[str, Any] = {}
    families = {name: part.get("speedup_total") for name, part in result.get("by_category", {}).items()}
    rows = [
        [f"{name} (n={result['by_category'][name]['prompts']})", value] for name, value in families.items() if value
    ]
    if rows:
        table = wandb.Table(columns=["family", "speedup"], data=rows)
        found["speedup_by_family"] = wandb.plot.bar(table, "family", "speedup", title="speedup by family")
    lengths = (result.get("acceptance_length") or {}).get("histogram") or []
    if sum(lengths):
        found["acceptance_length"] = wandb.Histogram(np_histogram=(lengths, list(range(len(lengths) + 1))))
    return found


def prompt_table(lines: Sequence[Line]) -> wandb.Table:
    """Return the table of prompts, with their texts and numbers."""
    import wandb

    columns = ["id", "category", "turn", "prompt", "output", "new tokens", "tokens per forward", "speedup", "lossless"]
    rows = [
        [
            line["id"],
            line["category"],
            line["turn"],
            line.get("prompt_text", ""),
            line["text"],
            line["new_tokens"],
            line["new_tokens"] / line["target_forwards"] if line["target_forwards"] else None,
            speedup_of(line),
            line["lossless"]["verdict"],
        ]
        for line in measured(lines)
    ]
    return wandb.Table(columns=columns, data=rows)
