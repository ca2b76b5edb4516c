"""The field's measures, worked out by hand."""

from __future__ import annotations

import pytest

from selfdraft.tracking.field_terms import field_terms

# [tokens, parents, accepted nodes, bonus, source, probes]
STEPS = [
    [[1, 2, 3], None, [0, 1], 9, "pool", None],  # three tokens
    [[1, 2], [-1, -1], [1], 9, "pool", None],  # two
    [[], None, [], 9, "", None],  # no draft: one
    [[1, 2], None, [0, 1], None, "pool", None],  # two: the text ended within the draft
]
LINE = {"steps": STEPS, "new_tokens": 8, "latency_s": 2.0, "first_token_s": 0.5, "step_s": [0.4, 0.1, 0.2, 0.3]}


def test_drafts_are_counted_by_what_a_step_wrote() -> None:
    found = field_terms([LINE])
    assert found["acceptance_length"] == {"mean": 2.0, "histogram": [0, 1, 2, 1]}
    assert found["draft_tokens"] == {"drafted": 7, "accepted": 5, "wasted": 2}
    assert found["joint_acceptance"] == [1.0, pytest.approx(2 / 3)]
    assert found["conditional_acceptance"] == [1.0, pytest.approx(2 / 3)]


def test_waiting_is_told_apart_from_decoding() -> None:
    found = field_terms([LINE])
    assert found["ttft_s"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5}
    assert found["tpot_s"]["p50"] == pytest.approx(1.5 / 5)
    assert found["inter_token_s"]["p50"] == pytest.approx(0.2)  # of all steps but the first


def test_lines_without_steps_or_times_have_none() -> None:
    found = field_terms([{"new_tokens": 3, "latency_s": 1.0}])
    assert found["acceptance_length"] == {"mean": None, "histogram": []}
    assert found["ttft_s"] is found["tpot_s"] is found["inter_token_s"] is None
    assert found["joint_acceptance"] == found["conditional_acceptance"] == []
