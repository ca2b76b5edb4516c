"""task=evaluate on the random tiny model: from overrides to result files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import yaml

from command_line import SMOKE, Done, read_lines, read_result, run_here, said_by, tamper, write_prompts
from selfdraft.core.certificate import Certificate
from selfdraft.core.errors import UserError
from selfdraft.drafters.jacobi import Jacobi
from selfdraft.models.families.rotary import Rotary
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.tiny import tiny_tokenizer
from selfdraft.models.measuring import memory
from selfdraft.models.reference.stock import REFERENCES, StockGenerate, StockGeneration

LINE_KEYS = (
    "id category turn prompt_ids output_ids text new_tokens target_forwards prefill_s decode_s baseline_decode_s "
    "lossless"
)
RESULT_KEYS = (
    "task model drafter dataset prompts new_tokens target_forwards tokens_per_forward decode_tokens_per_s "
    "baseline_tokens_per_s speedup lossless acceptance_by_depth phases_s peak_memory_mb by_category"
)
FAMILIES = {"mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag"}
REPEATS = 3
DRAFTER = ("drafter=layer_skip", "drafter.path.sparsity=0.3")  # of four layers, one sublayer: accepted now and then


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One run with everything on, shared by the tests below. It writes its files and starts no other process."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    references = f"task.references=[{','.join(REFERENCES)}]"
    return Done.of(folder, *SMOKE, "logger=wandb", f"task.repeats={REPEATS}", references, *DRAFTER)


def inspect_wandb(folder: Path) -> dict[str, Any]:
    """The only W&B run under `folder`, read back by W&B's own program."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", run]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_every_line_of_prompts_jsonl_has_the_required_fields(done: Done) -> None:
    for line in done.lines:
        assert set(LINE_KEYS.split()) <= line.keys()
        assert line["new_tokens"] == len(line["output_ids"]) > 0
        assert line["target_forwards"] == len(line["steps"])
        assert line["lossless"].keys() == asdict(Certificate("exact")).keys()


def test_result_json_has_the_required_fields(done: Done) -> None:
    assert set(RESULT_KEYS.split()) <= done.result.keys()
    named = {"task": "evaluate", "model": "tiny llama", "drafter": "layer_skip", "dataset": "bundled"}
    assert named.items() <= done.result.items()
    assert set(done.result["speedup"]) == {"median", "low", "high"}
    assert set(done.result["lossless"]) == {"exact", "tie", "mismatch"}
    peaks = done.result["peak_memory_by_phase_mb"]
    assert set(peaks) == {"load", "prefill", "decode", "certify"}
    assert 0 < max(peaks.values()) <= done.result["peak_memory_mb"]
    assert set(done.result["phases_s"]) == {"prefill", "draft", "verify", "commit", "other"}
    assert set(done.result["by_category"]) == FAMILIES
    assert set(RESULT_KEYS.split()[4:-1]) <= done.result["by_category"]["qa"].keys()


def test_every_prompt_and_turn_is_measured_once(done: Done) -> None:
    keys = [(line["id"], line["turn"]) for line in done.lines]
    assert len(set(keys)) == len(keys) == 7  # the writing prompt has two turns
    assert (done.result["prompts"], done.result["turns"]) == (6, 7)
    assert {line["family"] for line in done.lines} == FAMILIES


@pytest.mark.parametrize("family", [None, "mt_bench", "rag"])
def test_the_counts_of_the_result_are_sums_over_the_lines(done: Done, family: str | None) -> None:
    lines = [line for line in done.lines if family in (None, line["family"])]
    found = done.result if family is None else done.result["by_category"][family]

    def total(key: str) -> float:
        return sum(line[key] for line in lines)

    assert found["new_tokens"] == total("new_tokens")
    assert found["target_forwards"] == total("target_forwards")
    assert found["tokens_per_forward"] == pytest.approx(total("new_tokens") / total("target_forwards"))
    assert found["decode_tokens_per_s"] == pytest.approx(total("new_tokens") / total("decode_s"))
    baseline = total("baseline_new_tokens") / total("baseline_decode_s")
    assert found["baseline_tokens_per_s"] == pytest.approx(baseline)
    verdicts = Counter(line["lossless"]["verdict"] for line in lines)
    assert found["lossless"] == {verdict: verdicts[verdict] for verdict in ("exact", "tie", "mismatch")}
    for phase, seconds in found["phases_s"].items():
        assert seconds == pytest.approx(sum(line["phases_s"][phase] for line in lines))
    for depth, counts in enumerate(found["acceptance_by_depth"]):
        at = [line["acceptance_by_depth"][depth] for line in lines if depth < len(line["acceptance_by_depth"])]
        assert counts == {key: sum(one[key] for one in at) for key in ("offered", "accepted")}


def test_the_speedup_is_the_median_of_the_paired_ratios(done: Done) -> None:
    paired = [
        (line["new_tokens"] / line["decode_s"]) / (line["baseline_new_tokens"] / line["baseline_decode_s"])
        for line in done.lines
    ]
    speedup = done.result["speedup"]
    assert speedup["median"] == pytest.approx(median(paired))
    assert min(paired) <= speedup["low"] <= speedup["median"] <= speedup["high"] <= max(paired)
    assert done.result["objective"] == done.result["speedup_total"]


def test_accepted_and_bonus_tokens_add_up_to_the_output(done: Done) -> None:
    accepted = 0
    for line in done.lines:
        written = []
        for tokens, _, path, bonus, *_ in line["steps"]:
            drafted = [tokens[node] for node in path]
            # A stop inside the accepted run ends with one of the drafted tokens instead of a bonus.
            written += drafted if drafted and len(written) + len(drafted) == line["new_tokens"] else [*drafted, bonus]
            accepted += len(path)
        assert written == line["output_ids"]
    assert accepted == sum(depth["accepted"] for depth in done.result["acceptance_by_depth"]) > 0


def test_float32_is_exact(done: Done) -> None:
    assert done.result["lossless"] == {"exact": 7, "tie": 0, "mismatch": 0}


def test_references_and_baseline_give_the_same_text(done: Done) -> None:
    for line in done.lines:
        assert set(line["references"]) == set(REFERENCES)
        assert all(reference["same_as_baseline"] for reference in line["references"].values())
        assert all(reference["lossless"]["verdict"] == "exact" for reference in line["references"].values())
    assert {name: found["turns"] for name, found in done.result["references"].items()} == dict.fromkeys(REFERENCES, 7)


def test_the_contenders_alternate_in_going_first(done: Done) -> None:
    contenders = ["drafter", "none", *REFERENCES]
    first: Counter[str] = Counter()
    for line in done.lines:
        orders = [repeat["order"] for repeat in line["repeats"]]
        assert len(orders) == REPEATS
        assert all(sorted(order) == sorted(contenders) for order in orders)
        assert len({order[0] for order in orders}) == REPEATS  # another one at every repeat
        first.update(order[0] for order in orders)
    assert set(first) == set(contenders)
    assert max(first.values()) - min(first.values()) <= REPEATS


def test_seconds_are_medians_over_the_repeats(done: Done) -> None:
    for line in done.lines:
        for key, name in (("decode_s", "drafter"), ("baseline_decode_s", "none")):
            assert line[key] == pytest.approx(median(repeat["decode_s"][name] for repeat in line["repeats"]))


def test_the_second_turn_continues_from_the_model_s_own_first_answer(done: Done) -> None:
    first, second = (next(line for line in done.lines if (line["id"], line["turn"]) == ("1", turn)) for turn in (0, 1))
    chat = Chat(tiny_tokenizer())
    conversation = [("user", first["prompt_text"]), ("assistant", first["text"]), ("user", second["prompt_text"])]
    assert second["prompt_ids"] == chat.encode(conversation)
    assert first["text"] == chat.decode(first["output_ids"])
    assert second["prompt_text"] not in first["prompt_text"]


def test_the_run_folder_records_command_and_environment(done: Done) -> None:
    config = yaml.safe_load((done.folder / "config.yaml").read_text())
    assert config["drafter"]["path"]["sparsity"] == 0.3
    assert config["model"]["name"] == "tiny"
    assert (config["seed"], config["task"]["repeats"]) == (0, REPEATS)
    environment = json.loads((done.folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["cpu"]["threads"] == 1
    assert {"memory_gb", "gpu", "git", "platform"} <= environment.keys()
    assert (done.folder / "result.png").read_bytes().startswith(b"\x89PNG")


def test_the_wandb_run_has_the_same_numbers(done: Done) -> None:
    found = inspect_wandb(done.folder)
    assert (found["state"], found["exit_code"], found["project"]) == ("finished", 0, "selfdraft")
    assert found["config"]["drafter"]["path"]["sparsity"] == 0.3
    summary = found["summary"]
    assert summary["speedup/median"] == pytest.approx(done.result["speedup"]["median"])
    assert summary["tokens_per_forward"] == pytest.approx(done.result["tokens_per_forward"])
    assert summary["lossless/exact"] == 7
    assert "by_category/qa/new_tokens" not in summary, "a table of runs needs no column of it"
    assert summary["prompts_table"]["nrows"] == 7


def test_the_terminal_shows_the_table_and_where_to_look(done: Done) -> None:
    assert "layer_skip (cold) against plain decoding: 6 prompts of bundled, tiny llama in float32" in done.said
    assert f"speedup {done.result['speedup_total']:.2f}× over all tokens" in done.said
    assert all(family in done.said for family in FAMILIES)
    assert f"results: {done.folder}" in done.said
    assert "wandb leet " in done.said and "wandb sync " in done.said
    assert "resuming" not in done.said


def test_the_objective_is_returned_for_a_sweep(tmp_path: Path) -> None:
    objective = run_here(tmp_path / "run", *SMOKE, "drafter=none", "dataset.limit=1", "decoding.max_new_tokens=4")
    result = read_result(tmp_path / "run")
    assert objective == result["objective"] == result["speedup_total"]
    # Autoregressive decoding is a token a forward, whatever the clock says.
    assert (result["tokens_per_forward"], result["acceptance_by_depth"]) == (1.0, [])


@pytest.mark.parametrize(("warm", "state"), [("true", "warm"), ("false", "cold")])
def test_the_result_says_whether_the_drafter_keeps_state_between_prompts(tmp_path: Path, warm: str, state: str) -> None:
    drafter = ("drafter=suffix", f"drafter.warm={warm}", "drafter.costs=flat", "dataset.shuffle=3")
    said = said_by(tmp_path / "run", *SMOKE, *drafter, "dataset.limit=1", "decoding.max_new_tokens=4")
    assert f"suffix ({state}) against plain decoding" in said
    assert read_result(tmp_path / "run")["drafter_memory"] == state


SHORT = ("drafter=none", "dataset.limit=1", "decoding.max_new_tokens=4")


def test_csv_and_none_leave_no_wandb_run(tmp_path: Path) -> None:
    for logger in ("csv", "none"):
        said = said_by(tmp_path / logger, *SMOKE, f"logger={logger}", *SHORT)
        assert not (tmp_path / logger / "wandb").exists()
        assert "wandb" not in said
    with (tmp_path / "csv" / "csv" / "metrics.csv").open(newline="") as file:
        *_, after_the_last_turn, at_the_end = csv.DictReader(file)
    result = read_result(tmp_path / "csv")
    assert float(after_the_last_turn["running/speedup"]) == pytest.approx(result["speedup_total"])
    assert float(at_the_end["speedup/median"]) == pytest.approx(result["speedup"]["median"])


def test_equal_seeds_give_equal_runs_and_another_seed_other_drafts(tmp_path: Path) -> None:
    runs = {}
    random = ("drafter.init=prompt_random", "drafter.costs=flat")
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        run_here(tmp_path / name, *SMOKE, *random, f"seed={seed}", "dataset.limit=1", "decoding.max_new_tokens=8")
        runs[name] = read_lines(tmp_path / name)
    drafts = {name: [line["steps"] for line in lines] for name, lines in runs.items()}
    outputs = {name: [line["output_ids"] for line in lines] for name, lines in runs.items()}
    assert drafts["one"] == drafts["again"] != drafts["other"]
    assert outputs["one"] == outputs["again"] == outputs["other"]  # the drafts are other ones, the text is not


# --- a run that is not lossless ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, object]:
    """A run whose drafter makes decoding lossy, and its exit status."""
    folder = tmp_path_factory.mktemp("broken") / "run"
    path = write_prompts(folder.parent / "p.jsonl", {"id": "a", "turns": ["One?", "Two?"]}, {"id": "b", "prompt": "B"})
    overrides = ["dataset=jsonl", f"dataset.path='{path}'", "dataset.per_category=null", "logger=wandb"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Jacobi, "observe", tamper)
        run_here(folder, *SMOKE, *overrides)
    return Done(folder, "", read_lines(folder), read_result(folder)), ended.value.code


def test_a_mismatch_fails_the_run_and_is_recorded(broken: tuple[Done, object]) -> None:
    run, status = broken
    assert status == 1
    assert run.result["lossless"]["mismatch"] > 0
    wrong = [line for line in run.lines if line["lossless"]["verdict"] == "mismatch"]
    assert len(wrong) == run.result["lossless"]["mismatch"]
    for line in wrong:
        index = line["lossless"]["first_divergence"]
        assert line["output_ids"][:index] == line["baseline_output_ids"][:index]
        assert line["output_ids"][index : index + 1] != line["baseline_output_ids"][index : index + 1]
    assert inspect_wandb(run.folder)["exit_code"] == 1


ALONE = (*SMOKE, "drafter=none", "dataset.limit=1", "decoding.max_new_tokens=12", "task.repeats=1")


def test_a_fault_of_drafter_and_baseline_alike_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rotary embeddings are wrong, so drafter and baseline give the same wrong text; no reference runs."""
    right = Rotary.__call__
    monkeypatch.setattr(
        Rotary, "__call__", lambda self, hidden, at, *more: right(self, hidden, at * (1 + (at.max() > 12)), *more)
    )
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path, *ALONE)
    assert ended.value.code == 1
    lines, result = read_lines(tmp_path), read_result(tmp_path)
    for line in lines:
        assert "baseline_output_ids" not in line
        assert (line["lossless"]["verdict"], line["lossless"]["reason"]) == ("mismatch", "forward")
    assert result["mismatch_reasons"] == {"forward": len(lines)}
    assert result["forward_distance"]["sigmas"] > result["forward_distance"]["ceiling"]
    assert "NOT LOSSLESS" in (said := capsys.readouterr().out) and "(forward)" in said


def test_a_baseline_that_differs_from_generate_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = StockGenerate.decode

    def other(self: StockGenerate, prompt: list[int]) -> StockGeneration:
        found = right(self, prompt)
        return replace(found, output=[*found.output[:5], (found.output[5] + 1) % 256, *found.output[6:]])

    monkeypatch.setattr(StockGenerate, "decode", other)
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path, *ALONE, "task.references=[transformers_greedy]")
    assert ended.value.code == 1
    lines, result = read_lines(tmp_path), read_result(tmp_path)
    for line in lines:
        beside = line["references"]["transformers_greedy"]
        assert (beside["same_as_baseline"], beside["lossless"]["first_divergence"]) == (False, 5)
        assert line["lossless"]["verdict"] == "exact"
    verdicts = {"exact": 0, "tie": 0, "mismatch": len(lines)}
    assert result["references"]["transformers_greedy"]["lossless"] == verdicts
    assert "(token, plain decoding beside transformers_greedy)" in capsys.readouterr().out


def test_a_conversation_continues_with_the_baseline_s_answer(
    broken: tuple[Done, object],
) -> None:
    first, second = (next(line for line in broken[0].lines if (line["id"], line["turn"]) == ("a", t)) for t in (0, 1))
    chat = Chat(tiny_tokenizer())
    answer = chat.decode(first["baseline_output_ids"])
    assert answer != first["text"]
    assert second["prompt_ids"] == chat.encode([("user", "One?"), ("assistant", answer), ("user", "Two?")])


def test_a_guarded_run_counts_the_steps_at_which_drafting_was_paused(tmp_path: Path) -> None:
    # Eight refinements, each of which is a forward, cost far more than they gain on any machine.
    dear = ("drafter.mode=literal", "drafter.refine_steps=8")
    guarded = ("decoding.guard=true", "decoding.max_new_tokens=64", *dear, "dataset.limit=2")
    run_here(tmp_path, *SMOKE, *guarded)
    lines, result = read_lines(tmp_path), read_result(tmp_path)
    counted = sum(step[4] == "stood down" for line in lines for step in line["steps"])
    assert 0 < counted == result["guard"]["stood_down"] <= result["guard"]["steps"]
    assert result["guard"]["steps"] == sum(len(line["steps"]) for line in lines)


@pytest.mark.parametrize("task", ["evaluate", "generate"])
def test_a_run_that_cannot_fit_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(UserError, match=r"memory: this run needs about \d+ MB \(weights .*\), but cpu has 0 MB left"):
        run_here(tmp_path / "run", *SMOKE, f"task={task}", "prompt=Why?")
    assert not (tmp_path / "run" / "prompts.jsonl").exists()
