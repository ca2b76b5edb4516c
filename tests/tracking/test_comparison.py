"""Comparisons: ratios worked out by hand from invented lines."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from selfdraft.core.errors import UserError
from selfdraft.tracking.display.leaderboard import as_markdown, print_comparison, rows_of
from selfdraft.tracking.numbers.comparison import by_weights, ranking, summarize_comparison, wrong_texts
from selfdraft.tracking.numbers.lines import refuse_malformed

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
    assert pool["output_token_throughput"] == pytest.approx(60 / 14.0)
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
    assert "| pool | 1.00× | 2.00× |" in as_markdown(result)


def test_other_weights_are_a_group_of_their_own_however_fast() -> None:
    result = summarize_comparison(LINES, seed=0, **LABELS)
    needs = {"load_s": 1.25, "compile_s": 8.0, "prepare_s": 0.5, "peak_memory_mb": 1234.0}
    for name, weights in (("none", "same values"), ("pool", "other values")):
        result["contenders"][name]["startup"] = {"weights": weights, **needs}
    assert by_weights(result) == {"same values": ["none"], "other values": ["pool"]}
    text = as_markdown(result)
    places = [text.index(part) for part in ("**same values**", "| none |", "**other values**", "| pool |")]
    assert places == sorted(places)
    assert "| pool | 1,234 MB | 1.2 s | 8.0 s | 0.5 s |" in text
    console = Console(width=100, record=True, file=io.StringIO())
    print_comparison(result, console)
    shown = console.export_text()
    assert shown.index("same values") < shown.index("other values") and "1,234 MB" in shown


def test_scores_are_a_column_where_answers_were_scored() -> None:
    result = summarize_comparison(LINES, seed=0, **LABELS)
    assert "score" not in as_markdown(result)
    result["contenders"]["pool"]["score"] = 0.5
    lines = as_markdown(result).splitlines()
    assert lines[0].endswith("| exact / tie / mismatch | score |") and lines[1].count("|") == lines[0].count("|")
    assert lines[2].endswith("| 2 / 1 / 0 | 50 % |") and lines[3].endswith("| – |")


def test_a_wrong_text_is_named_with_its_contender() -> None:
    wrong = line("d", "qa", part(10, 1.0, 5, "mismatch", output_ids=[9]), part(10, 2.0, 10))
    assert wrong_texts([*LINES, wrong], ["pool", "none"]) == ["pool: d/0 (token)"]
    assert wrong_texts([*LINES, wrong], ["none"]) == []


def test_a_damaged_line_is_refused_by_its_field(tmp_path) -> None:
    refuse_malformed(LINES, tmp_path)
    damaged = line("a", "qa", {**part(10, 1.0, 5), "decode_s": "soon"}, part(10, 2.0, 10))
    with pytest.raises(UserError, match=r"`contenders\.pool\.decode_s` is not a number"):
        refuse_malformed([damaged], tmp_path)
