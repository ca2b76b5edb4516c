"""Comparisons: ratios worked out by hand from invented lines."""

from __future__ import annotations

from typing import Any

import pytest

from selfdraft.core.errors import UserError
from selfdraft.tracking.comparison import ranking, summarize_comparison, wrong_texts
from selfdraft.tracking.leaderboard import as_markdown, rows_of
from selfdraft.tracking.lines import refuse_malformed

LABELS = {"task": "compare", "model": "m", "dataset": "d"}


def part(tokens: int, seconds: float, forwards: int, verdict: str = "exact", **more: Any) -> dict[str, Any]:
    return {
        "new_tokens": tokens,
        "target_forwards": forwards,
        "decode_s": seconds,
        "latency_s": 2 * seconds,
        "lossless": {"verdict": verdict},
        "acceptance_by_depth": [{"offered": 4, "accepted": 3}],
        "phases_s": {"prefill": seconds, "draft": 0.0, "verify": seconds, "commit": 0.0, "other": 0.0},
        "steps": [[]] * forwards,
        **more,
    }


def line(name: str, family: str, pool: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": name,
        "turn": 0,
        "category": family,
        "family": family,
        "text": "t",
        "prompt_ids": [1],
        "output_ids": list(range(plain["new_tokens"])),
        "peak_memory_mb": 7.0,
        "contenders": {"pool": pool, "none": plain},
    }


LINES = [
    line("a", "qa", part(10, 1.0, 5), part(10, 2.0, 10)),
    line("b", "qa", part(10, 2.0, 10), part(10, 1.0, 10)),
    line("c", "rag", part(40, 4.0, 10, "tie", output_ids=list(range(1, 41))), part(40, 8.0, 40)),
]


def test_ratios_are_those_of_sums_and_the_median_is_that_of_prompts() -> None:
    result = summarize_comparison(LINES, seed=0, **LABELS)
    pool, plain = result["contenders"]["pool"], result["contenders"]["none"]
    assert pool["decode_tokens_per_s"] == pytest.approx(60 / 7.0)
    assert plain["decode_tokens_per_s"] == pytest.approx(60 / 11.0)
    assert pool["end_to_end_tokens_per_s"] == pytest.approx(60 / 14.0)
    assert pool["tokens_per_forward"] == 60 / 25
    assert pool["speedup"]["median"] == 2.0  # of 2, 0.5 and 2
    total = pool["speedup_total_interval"]
    assert total["median"] == pytest.approx(11 / 7) and 0.5 <= total["low"] < total["median"] < total["high"] <= 2.0
    assert plain["speedup_total_interval"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert pool["lossless"] == {"exact": 2, "tie": 1, "mismatch": 0}
    assert {name: found["speedup"]["median"] for name, found in pool["by_category"].items()} == {"qa": 1.25, "rag": 2.0}
    assert pool["why"].startswith("why it won: a step writes 2.40 tokens") and plain["why"] is None
    assert (result["prompts"], result["turns"], result["model"]) == (3, 3, "m")


def test_the_order_of_lines_does_not_matter() -> None:
    assert summarize_comparison(LINES, seed=0, **LABELS) == summarize_comparison(LINES[::-1], seed=0, **LABELS)


def test_the_fastest_over_all_tokens_comes_first() -> None:
    result = summarize_comparison(LINES, seed=0, **LABELS)
    assert ranking(result) == ["pool", "none"]
    columns, rows = rows_of(result)
    assert [row[0] for row in rows] == ["pool", "none"] and all(len(row) == len(columns) for row in rows)
    first = as_markdown(result).splitlines()[2]
    assert first.startswith("| pool | 2.40 | 8.6 | 4.3 | 1.57× [") and first.endswith("| 2 / 1 / 0 |")
    assert "| pool | 1.25× | 2.00× |" in as_markdown(result)


def test_a_wrong_text_is_named_with_its_contender() -> None:
    wrong = line("d", "qa", part(10, 1.0, 5, "mismatch", output_ids=[9]), part(10, 2.0, 10))
    assert wrong_texts([*LINES, wrong], ["pool", "none"]) == ["pool: d/0 (token)"]
    assert wrong_texts([*LINES, wrong], ["none"]) == []


def test_a_damaged_line_is_refused_by_its_field(tmp_path) -> None:
    refuse_malformed(LINES, tmp_path)
    damaged = line("a", "qa", {**part(10, 1.0, 5), "decode_s": "soon"}, part(10, 2.0, 10))
    with pytest.raises(UserError, match=r"`contenders\.pool\.decode_s` is not a number"):
        refuse_malformed([damaged], tmp_path)
