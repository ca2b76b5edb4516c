"""Two processes share the prompts: every prompt is decoded once, and there is one result."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import ROOT, SMOKE, environment, read_lines, read_result, run, run_here, write_prompts
from forked import Forked

pytestmark = pytest.mark.slow

PROMPTS = [{"id": f"p{i}", "category": ("qa", "rag")[i % 2], "prompt": f"What is {i} and {i}?"} for i in range(11)]


@dataclass(frozen=True)
class Runs:
    """The same eleven prompts by two processes, in batches, and by one process."""

    done: subprocess.CompletedProcess[str]
    two: Path
    one: Path


def overrides(path: Path) -> list[str]:
    small = ("dataset=jsonl", f"dataset.path={path}", "dataset.per_category=null", "decoding.max_new_tokens=8")
    return [*SMOKE, *small]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("ddp")
    path = write_prompts(folder / "eleven.jsonl", *PROMPTS)
    two, one = folder / "two", folder / "one"
    # At measured costs, how much is drafted depends on the clock.
    done = run(
        *overrides(path), "drafter.costs=flat", "hardware=cpu_ddp", "decoding.batch_size=4", f"hydra.run.dir={two}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run_here(one, *overrides(path), "drafter.costs=flat")
    return Runs(done, two, one)


def test_eleven_prompts_over_two_processes_count_as_eleven(runs: Runs) -> None:
    lines, result = read_lines(runs.two), read_result(runs.two)
    assert sorted(line["id"] for line in lines) == sorted(prompt["id"] for prompt in PROMPTS)
    assert (result["prompts"], result["turns"]) == (11, 11)
    assert {family: part["prompts"] for family, part in result["by_category"].items()} == {"qa": 6, "rag": 5}
    assert result["new_tokens"] == sum(line["new_tokens"] for line in lines)


def test_both_processes_decoded_their_share(runs: Runs) -> None:
    ranks = [line["rank"] for line in read_lines(runs.two)]
    assert (ranks.count(0), ranks.count(1)) == (6, 5)


def test_the_files_of_the_ranks_are_merged_into_one(runs: Runs) -> None:
    assert not list(runs.two.glob("prompts.rank*"))
    assert [path.name for path in runs.two.parent.rglob("result.json")] == ["result.json"] * 2
    assert runs.done.stdout.count("results: ") == 1


def test_a_prompt_s_result_does_not_depend_on_its_process(runs: Runs) -> None:
    two, one = ({line["id"]: line for line in read_lines(folder)} for folder in (runs.two, runs.one))
    for key in ("prompt_ids", "output_ids", "steps", "target_forwards"):
        assert {name: line[key] for name, line in two.items()} == {name: line[key] for name, line in one.items()}
    results = read_result(runs.two), read_result(runs.one)
    for key in ("new_tokens", "tokens_per_forward", "acceptance_by_depth", "lossless"):
        assert results[0][key] == results[1][key]


def test_a_process_without_prompts_does_no_harm(tmp_path: Path) -> None:
    """The second process is started as for a user: the other tests fork it."""
    path = write_prompts(tmp_path / "one.jsonl", PROMPTS[0])
    given = [*overrides(path), "hardware=cpu_ddp", f"hydra.run.dir={tmp_path}/run"]
    running = Forked(ROOT / "run.py", given, cwd=ROOT, env=environment(), spares=False)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, out + err
    assert read_result(tmp_path / "run")["prompts"] == 1


def test_tree_parallel_processes_record_the_text_of_one_process_once(runs: Runs, tmp_path: Path) -> None:
    """Tree parallelism: every prompt by both, a share of each tree's branches by either."""
    path = write_prompts(tmp_path / "two.jsonl", *PROMPTS[:2])
    options = (*overrides(path), "drafter=lookahead")
    done = run(*options, "hardware=cpu_ddp", "hardware.tree_parallel=true", f"hydra.run.dir={tmp_path}/two")
    assert done.returncode == 0, done.stdout + done.stderr
    run_here(tmp_path / "one", *options)
    two, one = read_lines(tmp_path / "two"), read_lines(tmp_path / "one")
    for key in ("id", "output_ids", "steps", "target_forwards"):
        assert [line[key] for line in two] == [line[key] for line in one]
    assert {line["rank"] for line in two} == {0} and not list((tmp_path / "two").glob("prompts.rank*"))
    assert read_result(tmp_path / "two")["lossless"]["mismatch"] == 0
