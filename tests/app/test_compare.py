"""task=compare on the random tiny model: from contenders to a leaderboard."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from command_line import SMOKE, Done, ErrorLine, read_lines, read_result, run_here, said_by, tamper
from naming import naming
from selfdraft.app.tasks.compare import contenders_of
from selfdraft.core.errors import UserError
from selfdraft.drafters.jacobi import Jacobi

OURS = ("none", "jacobi costs=flat", "guarded layer_skip sparsity=0.3", "pool costs=flat warm=true")
NAMES = [*OURS, "transformers_greedy"]
QUOTED = ", ".join(f"'{name}'" for name in NAMES)
COMPARE = (*SMOKE, "task=compare", f"task.contenders=[{QUOTED}]", "dataset.limit=3", "decoding.max_new_tokens=12")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("compare") / "run"
    return Done.of(folder, *COMPARE, "logger=csv")


def test_every_line_has_every_contender(done: Done) -> None:
    assert done.result["prompts"] == 3 and done.result["turns"] == len(done.lines) == 4
    for line in done.lines:
        assert list(line["contenders"]) and set(line["contenders"]) == set(NAMES)
        for part in line["contenders"].values():
            assert part["new_tokens"] > 0 and part["decode_s"] > 0 and part["latency_s"] > part["decode_s"]
            assert part["lossless"]["verdict"] == "exact" and "output_ids" not in part
        for name in OURS:
            assert line["contenders"][name]["target_forwards"] >= len(line["contenders"][name]["steps"]) > 0


def test_the_contender_that_is_first_changes_from_prompt_to_prompt(done: Done) -> None:
    orders = [line["repeats"][0]["order"] for line in done.lines if line["turn"] == 0]
    for one, other in pairwise(orders):
        assert other[0] != one[0] and sorted(one) == sorted(other)


def test_the_result_ranks_contenders_by_their_tokens_per_second(done: Done) -> None:
    found = done.result["contenders"]
    assert set(found) == set(NAMES) == set(done.result["ranking"])
    for name, measures in found.items():
        tokens, seconds = (
            sum(line["contenders"][name][key] for line in done.lines) for key in ("new_tokens", "decode_s")
        )
        assert measures["decode_tokens_per_s"] == pytest.approx(tokens / seconds)
        assert measures["lossless"] == {"exact": 4, "tie": 0, "mismatch": 0}
        total = measures["speedup_total_interval"]
        assert total["low"] <= total["median"] <= total["high"]
        assert total["median"] == pytest.approx(measures["speedup_total"])
    rates = [found[name]["decode_tokens_per_s"] for name in done.result["ranking"]]
    assert rates == sorted(rates, reverse=True)
    assert found["none"]["speedup"]["median"] == 1.0
    assert done.result["objective"] == max(found[name]["speedup_total"] for name in OURS)


def test_what_each_contender_needed_is_in_the_result(done: Done) -> None:
    startup = {name: measures["startup"] for name, measures in done.result["contenders"].items()}
    for needs in startup.values():
        assert needs["weights"] == "same values" and needs["peak_memory_mb"] > 50 and needs["load_s"] > 0
    assert all(startup[name]["prepare_s"] > 0 and startup[name]["compile_s"] > 0 for name in OURS)
    assert startup["transformers_greedy"]["compile_s"] == 0.0


def test_the_leaderboard_is_printed_and_written_with_a_picture(done: Done) -> None:
    for name in NAMES:
        assert f"| {name} |" in (done.folder / "leaderboard.md").read_text()
        assert name.split()[-1] in done.said
    assert "why it " in done.said
    assert max(map(len, done.said.splitlines())) > 0
    assert (done.folder / "result.png").stat().st_size > 1000
    assert "contenders/none/decode_tokens_per_s" in (done.folder / "csv" / "metrics.csv").read_text()


def test_a_drafter_s_text_and_steps_are_those_of_an_evaluation(done: Done, tmp_path: Path) -> None:
    options = ("dataset.limit=3", "decoding.max_new_tokens=12", "drafter=jacobi", "drafter.costs=flat")
    run_here(tmp_path, *SMOKE, *options)
    for alone, line in zip(read_lines(tmp_path), done.lines, strict=True):
        assert alone["output_ids"] == line["output_ids"]
        assert alone["steps"] == line["contenders"]["jacobi costs=flat"]["steps"]


def test_an_interrupted_comparison_decodes_only_the_rest(done: Done, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "selfdraft.json"):
        text = (done.folder / name).read_text()
        (folder / name).write_text(text)
    kept = (done.folder / "prompts.jsonl").read_bytes().splitlines(keepends=True)[:2]
    (folder / "prompts.jsonl").write_bytes(b"".join(kept) + b'{"id": "torn')
    said = said_by(folder, *COMPARE)
    assert "resuming" in said
    assert (folder / "prompts.jsonl").read_bytes().splitlines(keepends=True)[:2] == kept
    assert [line["id"] for line in read_lines(folder)] == [line["id"] for line in done.lines]


def test_a_wrong_text_fails_the_comparison_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Jacobi, "observe", tamper)
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path, *SMOKE, "task=compare", "task.contenders=[suffix,jacobi]", "dataset.limit=1")
    assert ended.value.code == 1
    assert "NOT LOSSLESS: jacobi: " in capsys.readouterr().out
    found = read_result(tmp_path)["contenders"]
    assert list(found) == ["none", "suffix", "jacobi"]  # plain decoding takes part although it was not named
    assert found["jacobi"]["lossless"]["mismatch"] > 0 == found["suffix"]["lossless"]["mismatch"]


def test_wrong_contenders_give_one_clear_line() -> None:
    for given, said in [
        (["none"], "task.contenders: give at least one besides plain decoding"),
        ([], "task.contenders: give at least one besides plain decoding"),
        (["pool", "none", "pool "], "task.contenders: 'pool' is given twice"),
        (["polo"], "task.contenders, 'polo' (did you mean pool?): there is no drafter 'polo'; choose one of none, "),
        (["guarded openvinoo"], "task.contenders, 'guarded openvinoo' (did you mean openvino?): there is no drafter "),
        (["pool edges=0"], "task.contenders, 'pool edges=0': drafter.edges=0: must be at least 1"),
    ]:
        with naming(given), pytest.raises(UserError) as refused:
            contenders_of(given)
        assert str(refused.value).startswith(said)


def test_options_for_one_drafter_are_refused(error_line: ErrorLine) -> None:
    for options, said in [
        (["decoding.guard=true"], 'decoding.guard=true: write "guarded" before the contenders that it is for'),
        (["task.contenders=['pool edges=0']"], "task.contenders, 'pool edges=0': drafter.edges=0: must be at least 1"),
        (
            ["task.contenders=['pool warm=true']", "task.repeats=2"],
            "task.repeats=2 with drafter.warm=true: repeats would draft from the answers of the first",
        ),
        (
            ["hardware.tree_parallel=true", "hardware=cpu_ddp"],
            "hardware.tree_parallel shares out the trees of one drafter: use task=evaluate",
        ),
    ]:
        with naming(options):
            assert error_line("task=compare", *options).startswith(said)


def test_earlier_runs_are_shown_beside(done: Done, tmp_path: Path) -> None:
    said = said_by(tmp_path / "run", *SMOKE, "task=compare", "task.contenders=[]", f"task.runs=['{done.folder}']")
    board = (tmp_path / "run" / "leaderboard.md").read_text()
    for name in NAMES:
        assert f"| run | {name} | tiny llama | float32 | 3 (4 turns) | " in board
    assert "earlier runs: each was timed by itself" in said
    with pytest.raises(UserError, match=r"result\.json is not there: give the folders of finished runs"):
        run_here(tmp_path / "no", *SMOKE, "task=compare", f"task.runs=['{tmp_path}']")
