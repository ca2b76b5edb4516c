"""Spec-Bench's JSONL: our files have what its speed.py and equal.py read, and others' files give rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from made_runs import comparison_in, decoded, evaluation_in
from selfdraft.core.errors import UserError
from selfdraft.tracking.numbers.spec_bench import rows_of_others, rows_of_ours, write_answers
from selfdraft.tracking.report.runs import read_runs


def lines() -> list[dict]:
    return [
        decoded("82", "qa", turn=0, text="first", decode_s=2.0, baseline_decode_s=4.0),
        decoded("82", "qa", turn=1, text="second", decode_s=3.0, baseline_decode_s=5.0, baseline_text="other"),
        decoded("9", "rag", text="nine"),
    ]


def read(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_file_has_what_spec_bench_reads(tmp_path: Path) -> None:
    ours, plain = write_answers(tmp_path, lines(), model="tiny llama", drafter="pool sources=[suffix]")
    assert (ours.name, plain.name) == ("pool-sources=-suffix.jsonl", "none.jsonl")
    nine, question = read(ours)
    assert [each["question_id"] for each in (nine, question)] == [9, 82]
    assert question["category"] == "writing" and question["model_id"] == "tiny llama-pool sources=[suffix]"
    (choice,) = question["choices"]
    assert choice["turns"] == ["first", "second"] and choice["new_tokens"] == [7, 7]
    assert choice["decoding_steps"] == [4, 4] and choice["accept_lengths"] == [2, 3, 1, 1] * 2
    assert choice["wall_time"] == [2.5, 3.5]  # with half a second of prefill
    (choice,) = read(plain)[1]["choices"]
    assert choice["turns"] == ["first", "other"] and choice["accept_lengths"] == [1] * 14
    assert choice["wall_time"] == [4.5, 5.5]


def test_a_comparison_has_a_file_for_each_of_our_decoders(tmp_path: Path) -> None:
    (run,), _ = read_runs([comparison_in(tmp_path / "run", lines(), ["none", "pool", "jacobi"])])
    paths = write_answers(tmp_path / "answers", run.lines, model="tiny", drafter="")
    assert [path.name for path in paths] == ["none.jsonl", "pool.jsonl", "jacobi.jsonl"]
    assert [each["question_id"] for each in read(paths[1])] == [9, 82]


def test_files_of_others_give_rows(tmp_path: Path) -> None:
    ours, plain = write_answers(tmp_path, lines(), model="tiny", drafter="pool")
    with_base, base = rows_of_others([ours, plain], plain)
    assert (with_base["name"], with_base["prompts"]) == ("pool", 2)
    assert with_base["tokens_per_s"] == pytest.approx(21 / 7.5)
    assert with_base["tokens_per_step"] == pytest.approx(21 / 12)
    assert with_base["speedup"] == pytest.approx((4.5 + 5.5 + 2.5) / 7.5) and base["speedup"] == 1
    assert rows_of_others([ours], None)[0]["speedup"] is None


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "nonsense",
        '{"question_id": 1, "choices": []}',
        '{"question_id": 1, "choices": [{"new_tokens": ["x"]}]}',
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (path := tmp_path / "x.jsonl").write_text(content + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl:1 is no answer of Spec-Bench"):
        rows_of_others([path], None)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        rows_of_others([tmp_path / "gone.jsonl"], None)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="has no answers"):
        rows_of_others([tmp_path / "empty.jsonl"], None)


def test_ours_are_counted_as_others_are(tmp_path: Path) -> None:
    written = rows_of_others(write_answers(tmp_path, lines(), model="tiny", drafter="pool"), tmp_path / "none.jsonl")
    ours = rows_of_ours(lines(), "pool")
    for name, row in zip(("pool", "none"), written, strict=True):
        same = ("prompts", "tokens_per_s", "tokens_per_step", "speedup")
        assert [ours[name][each] for each in same] == pytest.approx([row[each] for each in same])


def test_evaluations_are_read_back_whole(tmp_path: Path) -> None:
    (run,), _ = read_runs([evaluation_in(tmp_path / "run", lines())])
    assert len(write_answers(tmp_path / "answers", run.lines, model="m", drafter="d")) == 2
