"""Lines of prompts.jsonl with simple numbers."""

from typing import Any


def line(id: str = "a", turn: int = 0, **changes: Any) -> dict[str, Any]:
    """10 tokens in 1 s over 5 forwards against 10 tokens in 2 s: twice as fast, 2 tokens a forward."""
    return {
        "id": id,
        "turn": turn,
        "category": "writing",
        "family": "mt_bench",
        "prompt_ids": [1, 2, 3],
        "prompt_text": f"prompt of {id}",
        "output_ids": list(range(10)),
        "text": f"answer to {id}",
        "new_tokens": 10,
        "target_forwards": 5,
        "prefill_s": 0.5,
        "decode_s": 1.0,
        "baseline_decode_s": 2.0,
        "baseline_new_tokens": 10,
        "latency_s": 1.5,
        "baseline_latency_s": 2.5,
        "lossless": {"verdict": "exact", "first_divergence": None, "margin": None, "control": None},
        "acceptance_by_depth": [{"offered": 5, "accepted": 4}, {"offered": 4, "accepted": 1}],
        "phases_s": {"prefill": 0.5, "draft": 0.1, "verify": 0.8, "commit": 0.06, "other": 0.04},
        "peak_memory_mb": 100.0,
        "repeats": [{"order": ["drafter", "baseline"], "decode_s": {"drafter": 1.0, "baseline": 2.0}}],
        "references": {},
        "rank": 0,
    } | changes


def evaluation() -> list[dict[str, Any]]:
    """Three families of unequal length, two turns on one prompt, one tie, and a reference on some of the turns."""
    tie = {"verdict": "tie", "first_divergence": 7, "margin": 0.01, "control": 0.02}
    reference = {"transformers_greedy": {"new_tokens": 9, "decode_s": 3.0}}
    return [
        line("a", 0, references=reference),
        line("a", 1, decode_s=1.25, references=reference),
        line("b", 0, family="qa", category="qa", new_tokens=90, target_forwards=80, decode_s=9.0,
             baseline_new_tokens=90, baseline_decode_s=9.9, lossless=tie, peak_memory_mb=140.0,
             acceptance_by_depth=[{"offered": 70, "accepted": 10}]),
        line("c", 0, family="rag", category="rag", new_tokens=40, target_forwards=10, decode_s=2.0,
             baseline_new_tokens=40, baseline_decode_s=8.0,
             acceptance_by_depth=[{"offered": 10, "accepted": 10}, {"offered": 10, "accepted": 9},
                                  {"offered": 9, "accepted": 8}]),
    ]  # fmt: skip
