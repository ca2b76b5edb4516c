"""Edited or foreign lines of prompts.jsonl: one clear line names the prompt and the field."""

import copy
from contextlib import suppress
from functools import partial

import pytest

from example_lines import evaluation, line
from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.core.statistics import paired_bootstrap
from selfdraft.tracking.files.records import TEXTS
from selfdraft.tracking.numbers import summary
from selfdraft.tracking.numbers.lines import LEFT_OUT, measured, refuse_malformed
from selfdraft.tracking.numbers.summary import summarize

LABELS = {"task": "evaluate", "model": "m", "drafter": "d", "dataset": "x", "seed": 0}


def test_complete_lines_are_accepted(tmp_path):
    refuse_malformed(evaluation(), tmp_path)
    assert measured(evaluation()) == evaluation()


def test_a_wrong_field_is_named(tmp_path):
    for field, value, said in [
        ("family", None, "`family` is no text"),
        ("decode_s", "1", "`decode_s` is not a number of 0 or more"),
        ("decode_s", float("nan"), "`decode_s` is not a number of 0 or more"),
        ("decode_s", 10**400, "`decode_s` is not a number of 0 or more"),
        ("new_tokens", 1.5, "`new_tokens` is not a whole number of 0 or more"),
        ("new_tokens", True, "`new_tokens` is not a whole number of 0 or more"),
        ("lossless", [], "`lossless` is no JSON object"),
        ("lossless", {}, "`lossless.verdict` is missing"),
        ("lossless", {"verdict": "fine"}, "`lossless.verdict` is none of exact, sampled, tie, mismatch, uncertified"),
        ("lossless", {"verdict": "exact", "ceiling": "x"}, "`lossless.ceiling` is not a number of 0 or more"),
        ("lossless", {"verdict": "tie", "float32": {}}, "`lossless.float32.prefers` is missing"),
        (
            "references",
            {"x": {"new_tokens": 1, "decode_s": 1.0, "lossless": {}}},
            "`references.x.lossless.verdict` is missing",
        ),
        ("acceptance_by_depth", [{"offered": 1}], "`acceptance_by_depth[].accepted` is missing"),
        ("acceptance_by_depth", {}, "`acceptance_by_depth` is no list"),
        ("phases_s", {"draft": None}, "`phases_s.draft` is not a number of 0 or more"),
        ("references", {"x": {"new_tokens": 1}}, "`references.x.decode_s` is missing"),
        ("output_ids", ["a"], "`output_ids[]` is not a whole number of 0 or more"),
    ]:
        with naming(field, value, said):
            with pytest.raises(UserError) as caught:
                refuse_malformed([line("a"), line("b", 1, **{field: value})], tmp_path)
            assert str(caught.value).startswith(f"{tmp_path}/prompts.jsonl: the line of id 'b', turn 1: {said}: remove")


def test_every_field_that_a_result_needs_is_required(tmp_path):
    """A line without any one field is refused, or the result can be computed without the field."""
    whole = line("a")
    for field in whole.keys() - {"id", "turn"}:
        lines = [copy.deepcopy(whole) for _ in range(2)]
        del lines[1][field]
        try:
            refuse_malformed(lines, tmp_path)
        except UserError as error:
            assert f"`{field}` is missing" in str(error)
        else:
            summarize(lines, **LABELS)


def test_a_certificate_may_have_only_a_verdict(tmp_path):
    for part in ({}, {"control": None, "float32": None, "distance": None, "ceiling": None}, {"ceiling": 1.0}):
        lines = [line("a", lossless={"verdict": "exact", **part})]
        refuse_malformed(lines, tmp_path)
        assert summarize(lines, **LABELS)["forward_distance"] is None


def test_a_field_is_refused_or_the_result_can_be_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "paired_bootstrap", partial(paired_bootstrap, resamples=9))
    for value in [None, "x", [], {}, [[]], -1, True, {"a": None}, [None], [{"a": 1}]]:
        with naming(value):
            for field in line("a").keys() - {"id", "turn"}:
                lines = [line("a"), line("b", **{field: value})]
                with suppress(UserError):
                    refuse_malformed(lines, tmp_path)
                    summarize(lines, **LABELS)


def test_a_left_out_turn_needs_no_measures(tmp_path):
    left_out = {"id": "a", "turn": 1, "category": "c", "family": "c", LEFT_OUT: "too long"}
    refuse_malformed([left_out], tmp_path)
    assert measured([left_out, line("a")]) == [line("a")]


def test_lines_of_distilled_texts_have_their_own_fields(tmp_path):
    text = {"id": "a", "turn": 0, "category": "c", "prompt_ids": [1], "output_ids": [2], "text": "t"}
    text |= {"target_forwards": 1, "prefill_s": 0.1, "decode_s": 0.1, "rank": 0}
    refuse_malformed([text], tmp_path, name=TEXTS)
    with pytest.raises(UserError, match=r"texts\.jsonl: the line of id 'a', turn 0: `rank` is missing"):
        refuse_malformed([{k: v for k, v in text.items() if k != "rank"}], tmp_path, name=TEXTS)
