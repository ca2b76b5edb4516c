"""The report's data: from run folders to rows, charts and the viewer's steps."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from example_lines import line
from made_runs import CHANCES, STEPS, comparison_in, evaluation_in, lines_of
from selfdraft.core.errors import UserError
from selfdraft.tracking.numbers.summary import FEW_OFFERS, summarize
from selfdraft.tracking.report import charts
from selfdraft.tracking.report.decode import kinds_of, viewed
from selfdraft.tracking.report.page import write_report
from selfdraft.tracking.report.rows import acceptance_of, phases_of, rows_of, speedup_of
from selfdraft.tracking.report.runs import folders_of, read_runs


def test_a_step_says_how_each_of_its_tokens_came() -> None:
    assert [kinds_of(step) for step in STEPS] == [
        ["accepted", "corrected"],
        ["accepted", "accepted", "bonus"],
        ["plain"],
        ["accepted"],
    ]
    probes_only = [[1, 2], [-1, 0], [], 3, "lookahead", [0, 1]]
    assert kinds_of(probes_only) == ["plain"]


def test_rows_are_ranked_and_named_by_what_differs(tmp_path: Path) -> None:
    folders = [
        evaluation_in(tmp_path / "a", lines_of(), max_nodes=8),
        evaluation_in(tmp_path / "b", lines_of(baseline_decode_s=4.0), max_nodes=16),
        comparison_in(tmp_path / "c", lines_of(), ["none", "jacobi", "layer_skip"]),
    ]
    runs, unread = read_runs(folders)
    rows = rows_of(runs)
    assert not unread and [row.speedup.value for row in rows] == sorted(
        (row.speedup.value for row in rows), reverse=True
    )
    assert rows[0].label == "pool (max_nodes=16)"
    assert {row.label for row in rows} == {"pool (max_nodes=8)", "pool (max_nodes=16)", "jacobi", "layer_skip", "none"}
    best = next(row for row in rows if row.label == "pool (max_nodes=16)")
    assert best.speedup.value == pytest.approx(json.loads((tmp_path / "b/result.json").read_text())["speedup_total"])
    assert best.speedup.has_interval and best.speedup.prompts == 4


def test_folders_of_the_same_name_and_options_have_different_labels(tmp_path: Path) -> None:
    runs, _ = read_runs([evaluation_in(tmp_path / part / "0", lines_of()) for part in ("one", "two")])
    assert [run.name for run in runs] == ["one/0", "two/0"]
    assert {row.label for row in rows_of(runs)} == {"pool (one/0)", "pool (two/0)"}


def test_a_speedup_of_one_prompt_has_no_interval() -> None:
    one = summarize([line()], task="evaluate", model="m", drafter="d", dataset="x", seed=0)
    assert speedup_of(one).prompts == 1 and not speedup_of(one).has_interval
    (bar,), place = charts.bars([speedup_of(one)])
    assert bar.is_single and bar.low is None and bar.width == pytest.approx(100 * 2 / 2.1, abs=0.01)
    assert place == pytest.approx(100 / 2.1, abs=0.01)


def test_results_of_earlier_versions_have_no_interval_of_the_speedup() -> None:
    old = {"speedup_total": 1.5, "prompts": 9}
    assert speedup_of(old) == (1.5, None, None, 9) and not speedup_of(old).has_interval


def test_acceptance_of_few_offers_is_marked() -> None:
    depths = [
        {"offered": FEW_OFFERS, "accepted": 5},
        {"offered": FEW_OFFERS - 1, "accepted": 1},
        {"offered": 0, "accepted": 0},
    ]
    found = acceptance_of({"acceptance_by_depth": depths})
    assert [each["known"] for each in found] == [True, False] and found[0]["share"] == 0.25


def test_phases_are_per_token_and_shares_of_all(tmp_path: Path) -> None:
    runs, _ = read_runs([evaluation_in(tmp_path / "a", lines_of())])
    (row,) = rows_of(runs)
    found = phases_of(row.measures)
    assert sum(share for _, share in found.values()) == pytest.approx(1)
    assert found["prefill"][0] == pytest.approx(1000 * 0.5 / 7)
    ((_, _, length),) = charts.phases([row])
    assert length == 100


def test_charts_lie_within_their_margins(tmp_path: Path) -> None:
    runs, _ = read_runs([comparison_in(tmp_path / "c", lines_of(), ["none", *(f"d{n}" for n in range(12))])])
    drafted = [row for row in rows_of(runs) if not row.is_plain]
    for chart in (charts.scatter(drafted), charts.acceptance(drafted)):
        assert len(chart.series) == charts.SERIES
        for mark in (mark for each in chart.series for mark in each.marks):
            assert charts.LEFT <= mark.x <= charts.WIDTH - charts.RIGHT
            assert charts.TOP <= mark.y <= charts.HEIGHT - charts.BOTTOM
        for x1, y1, x2, y2, _ in chart.lines:
            assert all(charts.TOP - 0.1 <= y <= charts.HEIGHT - charts.BOTTOM for y in (y1, y2))
            assert all(charts.LEFT <= x <= charts.WIDTH - charts.RIGHT + 0.1 for x in (x1, x2))
        assert len(chart.x_ticks) > 1 and len(chart.y_ticks) > 1


def test_lines_to_marks_of_few_offers_are_apart() -> None:
    first, second, third, last = marks = [charts.Mark(float(n), 0.0, "", n < 2) for n in range(4)]
    assert charts.Series("pool", 0, marks).lines == [(True, [first, second]), (False, [second, third, last])]
    assert charts.Series("pool", 0, [first]).lines == []


@pytest.mark.parametrize("forwards", [1, 2, 4, 7])
def test_no_label_of_a_line_lies_over_another_one(tmp_path: Path, forwards: int) -> None:
    runs, _ = read_runs([evaluation_in(tmp_path / "a", lines_of(target_forwards=forwards))])
    _, *lines = charts.scatter(rows_of(runs)).lines
    assert lines
    for (_, _, x, y, _), (_, _, other_x, other_y, _) in combinations(lines, 2):
        assert abs(x - other_x) > charts.LABEL or abs(y - other_y) > 16


def test_the_break_even_line_is_at_a_speedup_of_one(tmp_path: Path) -> None:
    runs, _ = read_runs([evaluation_in(tmp_path / "a", lines_of())])
    chart = charts.scatter(rows_of(runs))
    _, y1, _, y2, text = chart.lines[0]
    assert text.startswith("break-even") and y1 == y2 == next(tick.at for tick in chart.y_ticks if tick.text == "1")
    assert charts.training([], "expected_accepted") is None
    (only,) = charts.training([{"step": 0, "expected_accepted": 0.5}], "expected_accepted").series[0].marks
    assert charts.LEFT <= only.x <= charts.WIDTH and charts.TOP <= only.y <= charts.HEIGHT
    curve = charts.training(
        [{"step": 0, "expected_accepted": 0.5}, {"step": 9, "expected_accepted": 1.5}], "expected_accepted"
    )
    first, last = curve.series[0].marks
    assert first.x < last.x and first.y > last.y


def test_the_viewer_has_steps_chances_and_iterates(tmp_path: Path) -> None:
    runs, _ = read_runs([evaluation_in(tmp_path / "a", lines_of())])
    found = viewed(runs, rows_of(runs))
    (contender,) = found["contenders"]
    turn = contender["turns"][0]
    assert contender["label"] == "pool" and len(contender["turns"]) == 4 and found["left_out"] == 0
    first, second, third, last = turn["steps"]
    assert first["t"] == [1, 2, 3] and first["p"] == [-1, 0, -1] and first["n"] == ["suffix", "recycling", "suffix"]
    assert first["c"] == CHANCES[0] and first["k"] == ["accepted", "corrected"]
    assert "p" not in second and "r" not in second and third["t"] == []
    assert last["r"] == [1] and last["b"] is None
    assert turn["root"] == 3 and turn["iterates"][0] == [1, 0, [2, 4, 5]]  # places in the answer
    assert found["vocabularies"][0]["1"] == " w1"


def test_turns_that_do_not_fit_are_left_out_and_counted(tmp_path: Path) -> None:
    runs, _ = read_runs([evaluation_in(tmp_path / name, lines_of(), max_nodes=n) for n, name in enumerate("ab")])
    whole = viewed(runs, rows_of(runs))
    size = len(json.dumps(whole["contenders"]))
    half = viewed(runs, rows_of(runs), budget=len(json.dumps(whole["vocabularies"])) + size // 2)
    assert 0 < half["left_out"] < 8 and all(each["turns"] for each in half["contenders"])
    assert len(json.dumps(half["contenders"])) <= size // 2 + 200
    none = viewed(runs, rows_of(runs), budget=0)
    assert none["left_out"] == 8 and none["contenders"] == []


def test_plain_decoding_is_not_viewed(tmp_path: Path) -> None:
    runs, _ = read_runs([comparison_in(tmp_path / "c", lines_of(), ["none", "pool", "jacobi"])])
    assert [each["label"] for each in viewed(runs, rows_of(runs))["contenders"]] == ["pool", "jacobi"]


def test_patterns_name_runs_and_the_runs_of_sweeps(tmp_path: Path) -> None:
    run = evaluation_in(tmp_path / "run", lines_of())
    jobs = [evaluation_in(tmp_path / "sweep" / str(n), lines_of(count=1)) for n in (10, 9)]
    (tmp_path / "notes").mkdir()
    assert folders_of(str(tmp_path / "*")) == [run, jobs[1], jobs[0]]
    assert folders_of(str(tmp_path / "sweep")) == [jobs[1], jobs[0]]
    with pytest.raises(UserError, match=r"task\.runs: no folder of a run is at .*nothing"):
        folders_of(str(tmp_path / "nothing*"))


@pytest.mark.parametrize("content", ["", "[]", '{"task": "evaluate"', '{"task": "evaluate", "prompts": 3}'])
def test_damaged_results_are_listed_and_harm_no_other(tmp_path: Path, content: str) -> None:
    good = evaluation_in(tmp_path / "good", lines_of())
    (bad := tmp_path / "bad").mkdir()
    (bad / "result.json").write_text(content)
    runs, unread = read_runs([good, bad])
    assert [run.name for run in runs] == ["good"] and [each.name for each in unread] == ["bad"]
    write_report(tmp_path / "report.html", [good, bad])
    assert unread[0].reason in (tmp_path / "report.html").read_text()
    with pytest.raises(UserError, match="there is no result to show: bad"):
        write_report(tmp_path / "report.html", [bad])


@pytest.mark.parametrize("key", ["by_category", "lossless", "speedup", "phases_s", "turns"])
def test_results_that_were_edited_are_listed_too(tmp_path: Path, key: str) -> None:
    good, bad = (evaluation_in(tmp_path / name, lines_of()) for name in ("good", "bad"))
    result = json.loads((bad / "result.json").read_text())
    (bad / "result.json").write_text(json.dumps({**result, key: [7]}))
    write_report(tmp_path / "report.html", [good, bad])
    page = (tmp_path / "report.html").read_text()
    assert 'data-run="good"' in page
    if key != "turns":
        assert "bad: its result.json is damaged" in page and 'data-run="bad"' not in page


def test_damaged_turns_are_not_viewed(tmp_path: Path) -> None:
    lines = lines_of(families=("qa",), count=3)
    (run,), _ = read_runs([evaluation_in(tmp_path / "run", lines)])
    broken = replace(run, lines=[lines[0], {**lines[1], "steps": [["nonsense"]]}, lines[2]])
    assert [turn["id"] for turn in viewed([broken], rows_of([broken]))["contenders"][0]["turns"]] == ["qa-0", "qa-2"]


@pytest.mark.parametrize("content", ["", "[]", '{"turns": 3, "texts": {}}', '{"turns": []}'])
def test_without_a_sample_the_page_has_no_viewer(tmp_path: Path, content: str) -> None:
    folder = evaluation_in(tmp_path / "run", lines_of())
    (folder / "viewer.json").write_text(content)
    write_report(tmp_path / "report.html", [folder])
    assert 'id="viewer"' not in (tmp_path / "report.html").read_text()


def test_other_tasks_have_nothing_to_show(tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    (folder / "result.json").write_text('{"task": "calibrate", "objective": 1.0}')
    assert read_runs([folder]) == ([], [])


def test_a_training_has_its_curve(tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    history = [{"step": n, "expected_accepted": n / 10, "acceptance_by_depth": [0.5]} for n in range(5)]
    (folder / "result.json").write_text(json.dumps({"task": "finetune", "objective": 0.4, "history": history}))
    write_report(tmp_path / "report.html", [folder])
    page = (tmp_path / "report.html").read_text()
    assert 'id="training"' in page and "<polyline" in page and 'id="leaderboard"' not in page
