"""The field's measures, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from example_lines import line
from selfdraft.tracking.numbers.field_terms import field_terms

# [tokens, parents, accepted nodes, bonus, source, probes]
STEPS = [
    [[1, 2, 3], None, [0, 1], 9, "pool", None],  # three tokens
    [[1, 2], [-1, -1], [1], 9, "pool", None],  # two
    [[], None, [], 9, "", None],  # no draft: one
    [[1, 2], None, [0, 1], None, "pool", None],  # two: the text ended within the draft
]
# 8 tokens in 1.6 s after a prefill of 0.4 s, beside 10 tokens in 4 s of plain decoding.
LINE = line(
    steps=STEPS, new_tokens=8, output_ids=list(range(8)), decode_s=1.6, baseline_decode_s=4.0, latency_s=2.0,
    first_token_s=0.5, step_s=[0.4, 0.1, 0.2, 0.3], phases_s={"prefill": 0.4, "verify": 1.6},
)  # fmt: skip


def test_drafts_are_counted_by_what_a_step_wrote() -> None:
    found = field_terms([LINE])
    assert found["acceptance_length"] == {"mean": 2.0, "histogram": [0, 1, 2, 1]}
    assert found["draft_tokens"] == {"drafted": 7, "accepted": 5, "wasted": 2}
    assert found["joint_acceptance"] == [1.0, pytest.approx(2 / 3)]
    assert found["conditional_acceptance"] == [1.0, pytest.approx(2 / 3)]


def test_probes_are_no_drafts() -> None:
    probed = [[1, 2, 3], [-1, 0, -1], [0], 9, "lookahead", [1, 2]]  # one candidate, and two probes
    only_probes = [[1, 2], None, [], 9, "lookahead", [0, 1]]
    found = field_terms([line(steps=[probed, only_probes], new_tokens=3, decode_s=3.0)])
    assert found["draft_tokens"] == {"drafted": 1, "accepted": 1, "wasted": 0}
    assert found["joint_acceptance"] == [1.0]
    assert found["oracle"]["tokens_per_step"] == 1.5  # (1 + 1 + 0 + 1) / 2
    assert found["oracle"]["reached"] == 1.0


def test_the_oracle_accepts_every_draft_to_its_deepest_candidate() -> None:
    oracle = field_terms([LINE])["oracle"]
    # The drafts are 3, 1 (two siblings), 0 and 2 deep: (4 + 2 + 1 + 3) / 4 tokens a step.
    assert oracle["tokens_per_step"] == 2.5
    assert oracle["reached"] == pytest.approx(8 / 10)
    # 10 tokens in the run's 1.6 s, against 10 tokens in 4 s.
    assert oracle["speedup"] == pytest.approx((10 / 1.6) / (10 / 4))
    # The speedup that the run has is the reached share of it.
    assert oracle["speedup"] * oracle["reached"] == pytest.approx((8 / 1.6) / (10 / 4))


def test_the_oracle_follows_the_branches_of_a_tree() -> None:
    tree = [[1, 2, 3, 4, 5], [-1, 0, 1, -1, 3], [3], 9, "pool", None]  # branches of 3 and 2
    oracle = field_terms([line(steps=[tree], new_tokens=2)])["oracle"]
    assert (oracle["tokens_per_step"], oracle["reached"]) == (4.0, 0.5)


def test_there_is_no_oracle_without_drafts() -> None:
    assert field_terms([line(steps=[[[], None, [], 9, "", None]])])["oracle"] is None
    assert field_terms([line(steps=[[]])])["oracle"] is field_terms([line()])["oracle"] is None


def test_waiting_is_told_apart_from_decoding() -> None:
    found = field_terms([LINE])
    assert found["ttft_s"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5}
    assert found["tpot_s"]["p50"] == pytest.approx(1.5 / 5)
    assert found["inter_token_s"]["p50"] == pytest.approx(0.2)  # of all steps but the first


def test_output_tokens_per_second_include_the_prefill() -> None:
    slow = line("b", latency_s=40.0, decode_s=6.0, phases_s={"prefill": 2.0})  # it waited for others of its batch
    found = field_terms([LINE, slow])
    assert found["output_token_throughput"] == pytest.approx((8 + 10) / (0.4 + 1.6 + 2.0 + 6.0))
    quantiles = found["e2e_output_token_throughput"]  # of 4 and 0.25 tokens/s
    assert quantiles["p50"] == pytest.approx(2.125)
    assert (quantiles["p10"], quantiles["p90"]) == (pytest.approx(0.625), pytest.approx(3.625))


def test_another_engine_s_tokens_are_those_of_its_text() -> None:
    other = line(output_ids=[1, 2, 3], new_tokens=2, phases_s={}, latency_s=1.5, decode_s=0.5)
    assert field_terms([other])["output_token_throughput"] == 2.0
    died = line(output_ids=[], new_tokens=0, phases_s={}, latency_s=0.0, decode_s=0.0)
    assert field_terms([died])["output_token_throughput"] is field_terms([died])["e2e_output_token_throughput"] is None


def test_joules_are_divided_by_all_tokens() -> None:
    note = {"sources": ["package-0", "dram"], "not_readable": ""}
    short = line("b", output_ids=[1, 2], joules=9.0, baseline_joules=30.0, energy=note)
    found = field_terms([line(joules=15.0, baseline_joules=10.0, energy=note), short])["energy"]
    assert found == {
        "joules_per_token": {"drafter": 24 / 12, "baseline": 40 / 20},
        "sources": ["package-0", "dram"],
        "not_readable": "",
    }


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, "not recorded"),
        ({"energy": {"sources": [], "not_readable": "RAPL: permission denied"}}, "RAPL: permission denied"),
        ({"energy": {"sources": ["dram"], "not_readable": ""}, "joules": 0.0}, "the counters did not move"),
    ],
)
def test_a_result_says_why_it_has_no_joules(more: dict[str, Any], why: str) -> None:
    energy = field_terms([line(**more), line("b", **more)])["energy"]
    assert energy["joules_per_token"] == {"drafter": None, "baseline": None}
    assert energy["not_readable"] == why


def test_lines_without_steps_or_times_have_none() -> None:
    found = field_terms([line()])
    assert found["acceptance_length"] == {"mean": None, "histogram": []}
    assert found["ttft_s"] is found["tpot_s"] is found["inter_token_s"] is None
    assert found["joint_acceptance"] == found["conditional_acceptance"] == []
