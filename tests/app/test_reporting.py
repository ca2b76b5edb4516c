"""report.html at the end of runs and sweeps, and task=report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import SMOKE, Done, ErrorLine, read_result, said_by
from made_runs import evaluation_in, lines_of
from selfdraft.app.sweeps.sweep_report import report_of_sweep

SHORT = (*SMOKE, "dataset.limit=2", "decoding.max_new_tokens=12")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    literal = '"jacobi mode=literal refine_steps=2 window=4"'
    contenders = f"task.contenders=[none,{literal},'pool costs=flat',transformers_greedy]"
    return Done.of(tmp_path_factory.mktemp("compare") / "run", *SHORT, "task=compare", contenders, "logger=none")


def test_a_comparison_ends_with_its_report(done: Done) -> None:
    page = (done.folder / "report.html").read_text()
    assert "report.html" in done.said and "warning" not in done.said
    for name in done.result["contenders"]:
        assert f'data-contender="{name}"'.replace("'", "&#39;") in page


def test_the_sample_has_the_chances_of_every_step(done: Done) -> None:
    sample = json.loads((done.folder / "viewer.json").read_text())
    assert [turn["id"] for turn in sample["turns"]]
    lines = {(line["id"], line["turn"]): line for line in done.lines}
    for turn in sample["turns"]:
        line = lines[turn["id"], turn["turn"]]
        assert "transformers_greedy" not in turn["contenders"]
        for name, seen in turn["contenders"].items():
            steps = line["contenders"][name]["steps"]
            assert seen["steps"] == len(steps) == len(seen["chances"])
            for step, chances in zip(steps, seen["chances"], strict=True):
                assert len(chances) == len(step[0]) + 1
                assert all(0 < chances[node] <= 1 for node in step[2]) and (step[3] is None or 0 < chances[-1] <= 1)
                assert {str(token) for token in step[0]} <= set(sample["texts"])


def test_literal_jacobi_has_the_iterates_of_each_step(done: Done) -> None:
    for line in done.lines:
        (part,) = (part for name, part in line["contenders"].items() if name.startswith("jacobi"))
        verified = [step[0] for step in part["steps"][:-1]]  # the drafter does not see the last step
        passes = [ids for _, _, ids in part["iterates"]]
        assert all(block in passes for block in verified if block)
        assert len(passes) > len(verified)


def test_finished_runs_and_others_results_make_one_page(tmp_path: Path, done: Done) -> None:
    made = evaluation_in(tmp_path / "made", lines_of())
    answers = tmp_path / "first"
    said_by(answers, *SMOKE, "task=report", f"task.runs=[{done.folder}]", "task.spec_bench=true")
    (folder,) = (answers / "spec_bench").iterdir()
    files = sorted(folder.glob("*.jsonl"))
    assert len(files) == 3 and all(len(path.read_text().splitlines()) == 2 for path in files)
    plain = folder / "none.jsonl"
    others = [f"task.runs=[{tmp_path}/ma*,{done.folder}]", f"task.others=[{plain}]", f"task.others_plain={plain}"]
    said = said_by(tmp_path / "second", *SMOKE, "task=report", *others)
    page = (tmp_path / "second" / "report.html").read_text()
    assert "report of 2 runs" in said and 'id="others"' in page and "none.jsonl" in page
    assert page.count("data-contender") == 5
    assert read_result(tmp_path / "second")["runs"] == [str(made), str(done.folder)]


def test_a_report_of_nothing_is_refused(tmp_path: Path, error_line: ErrorLine) -> None:
    assert error_line("task=report").startswith("task.runs: give folders of runs")
    assert "no folder of a run is at" in error_line("task=report", f"task.runs=[{tmp_path}/x*]")


def test_a_sweep_has_a_report_of_its_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        evaluation_in(tmp_path / str(number), lines_of(), max_nodes=number)
    report_of_sweep(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "pool (max_nodes=0)" in page and "pool (max_nodes=1)" in page
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"


def test_a_sweep_without_results_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "selfdraft.json").write_text("{}")
    report_of_sweep(tmp_path)
    assert not (tmp_path / "report.html").exists() and capsys.readouterr().err == ""
