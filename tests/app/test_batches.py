"""decoding.batch_size in an evaluation: same outputs as single prompts, shared times, and resuming within a batch."""

from __future__ import annotations

import runpy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import ROOT, SMOKE, read_lines, read_result, run_here, said_by, write_prompts
from selfdraft.core.errors import UserError
from selfdraft.modules.bench import Bench
from selfdraft.tracking.files.records import RecordFile

BATCH = 2  # so that a step, of four batches, ends in the midst of the eleven prompts
TURNS = {f"p{i}": 1 + (i % 3 == 0) + (i == 6) for i in range(11)}  # 0, 3, 9: two turns; 6: three
PROMPTS = [
    {"id": name, "category": ("qa", "rag")[i % 2], "turns": [f"What is {i}{' and so on' * i}? {t}" for t in range(n)]}
    for i, (name, n) in enumerate(TURNS.items())
]
KEYS = [(name, turn) for name, count in TURNS.items() for turn in range(count)]
FEW = ("decoding.max_new_tokens=8",)
DRAFTER = ("drafter=layer_skip", "drafter.path.sparsity=0.3")


@dataclass(frozen=True)
class Runs:
    """The same prompts decoded in batches and one by one."""

    options: tuple[str, ...]
    batched: Path
    single: Path
    said: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("batches")
    path = write_prompts(folder / "eleven.jsonl", *PROMPTS)
    options = (*SMOKE, "dataset=jsonl", f"dataset.path={path}", "dataset.per_category=null", *DRAFTER, *FEW)
    said = said_by(folder / "batched", *options, f"decoding.batch_size={BATCH}", "task.repeats=2")
    run_here(folder / "single", *options)
    return Runs(options, folder / "batched", folder / "single", said)


def by_key(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {(line["id"], line["turn"]): line for line in read_lines(folder)}


@pytest.mark.parametrize("key", ["prompt_ids", "output_ids", "steps", "target_forwards", "acceptance_by_depth"])
def test_batching_does_not_change_the_decoding_of_a_prompt(runs: Runs, key: str) -> None:
    batched, single = by_key(runs.batched), by_key(runs.single)
    assert len(read_lines(runs.batched)) == len(batched) == len(KEYS)
    assert set(batched) == set(single) == set(KEYS)
    assert {found: line[key] for found, line in batched.items()} == {found: line[key] for found, line in single.items()}


def test_float32_is_exact(runs: Runs) -> None:
    result = read_result(runs.batched)
    assert result["lossless"] == {"exact": len(KEYS), "tie": 0, "mismatch": 0}
    assert (result["prompts"], result["turns"], result["batch_size"]) == (11, len(KEYS), BATCH)


def test_each_turn_is_decoded_for_all_prompts_before_the_next(runs: Runs) -> None:
    written = [(line["id"], line["turn"]) for line in read_lines(runs.batched)]
    steps = [list(TURNS)[:8], list(TURNS)[8:]]  # four batches of two
    assert written == [(p, turn) for step in steps for turn in range(3) for p in step if turn < TURNS[p]]


def test_drafter_and_baseline_alternate_in_going_first_by_batch(runs: Runs) -> None:
    lines = by_key(runs.batched)
    orders = {(line["turn"], tuple(repeat["order"][0] for repeat in line["repeats"])) for line in lines.values()}
    # The first step begins turn 0 with the drafter and turn 1 with the baseline, the second step the other way round.
    assert orders == {(turn, first) for turn in (0, 1) for first in (("drafter", "none"), ("none", "drafter"))} | {
        (2, ("drafter", "none"))
    }
    assert len({tuple(lines[f"p{i}", 0]["repeats"][0]["order"]) for i in range(8)}) == 1


def test_time_shares_add_up_and_latency_exceeds_a_share(runs: Runs) -> None:
    for line in read_lines(runs.batched):
        assert line["latency_s"] > 0 and line["baseline_latency_s"] > 0
        assert line["decode_s"] == pytest.approx(np.median([r["decode_s"]["drafter"] for r in line["repeats"]]))
    lines, result = read_lines(runs.batched), read_result(runs.batched)
    for whose, prefix in (("drafter", ""), ("baseline", "baseline_")):
        tokens = sum(line[f"{prefix}new_tokens"] for line in lines)
        assert result["throughput"][whose] == pytest.approx(tokens / sum(line[f"{prefix}decode_s"] for line in lines))
        latencies = [line[f"{prefix}latency_s"] for line in lines]
        expected = {"median": np.quantile(latencies, 0.5), "p95": np.quantile(latencies, 0.95)}
        assert result["latency_s"][whose] == pytest.approx(expected)
        # Two at a time: both wait for every step of which each is charged a half.
        assert sum(latencies) > 1.2 * sum(line[f"{prefix}decode_s"] for line in lines)


def test_the_terminal_shows_batch_size_throughput_and_latency(runs: Runs) -> None:
    assert f"tiny llama in float32, batch {BATCH}" in runs.said
    assert f"batch {BATCH}: " in runs.said and "tokens/s, latency" in runs.said
    assert read_result(runs.single)["batch_size"] == 1
    assert read_result(runs.single)["latency_s"]["drafter"]["median"] > 0


@pytest.mark.parametrize("kept", [5, 9, 13])
def test_a_run_killed_within_a_batch_decodes_only_the_rest(
    runs: Runs, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kill -9 leaves it while the lines of a batch are being written."""
    folder = tmp_path / "run"
    shutil.copytree(runs.batched, folder)
    whole = (folder / "prompts.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "prompts.jsonl").write_bytes(b"".join(whole[:kept]) + whole[kept][:40])
    (folder / "result.json").unlink()
    decoded = []
    measure = Bench.measure

    def counting(bench: Bench, requests, **options):
        decoded.extend(request.key for request in requests)
        return measure(bench, requests, **options)

    monkeypatch.setattr(Bench, "measure", counting)
    assert "resuming" in said_by(folder, *runs.options, f"decoding.batch_size={BATCH}", "task.repeats=2")
    assert len(set(decoded)) == len(decoded) == len(KEYS) - kept
    assert (folder / "prompts.jsonl").read_bytes().startswith(b"".join(whole[:kept]))
    again, before = by_key(folder), by_key(runs.batched)
    assert len(read_lines(folder)) == len(KEYS)
    for key in ("prompt_ids", "output_ids", "steps"):
        assert {found: line[key] for found, line in again.items()} == {
            found: line[key] for found, line in before.items()
        }
    assert read_result(folder)["turns"] == len(KEYS)


def test_lines_are_written_as_soon_as_their_turn_is_done(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    measure = Bench.measure

    def stopping(bench: Bench, requests, **options):
        if any(request.key.endswith("(turn 2)") for request in requests):
            raise Stopped
        return measure(bench, requests, **options)

    monkeypatch.setattr(Bench, "measure", stopping)
    with pytest.raises(Stopped):
        run_here(tmp_path / "run", *runs.options, f"decoding.batch_size={BATCH}")
    found = RecordFile(tmp_path / "run" / "prompts.jsonl").done()
    assert found == {(name, 0) for name in list(TURNS)[:8]}


def test_sampling_in_a_batch_gives_the_text_of_a_single_request(runs: Runs, tmp_path: Path) -> None:
    options = [*runs.options, "decoding=sample", "dataset.limit=6"]
    run_here(tmp_path / "batched", *options, "decoding.batch_size=4")
    run_here(tmp_path / "single", *options)
    outputs = [{k: line["output_ids"] for k, line in by_key(tmp_path / name).items()} for name in ("batched", "single")]
    assert outputs[0] == outputs[1] and len(outputs[0]) > 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decoding.batch_size=0"], "decoding.batch_size=0: must be at least 1"),
        (
            ["decoding.batch_size=4", "task.references=[transformers_greedy]"],
            "decoders outside SelfDraft answer prompt by prompt: compare with them at decoding.batch_size=1",
        ),
        (
            ["decoding.batch_size=4", "decoding.shape_invariant=true"],
            "decoding.shape_invariant=true decodes one prompt at a time: use decoding.batch_size=1, not 4",
        ),
        (
            ["task=generate", "prompt=Hello", "decoding.batch_size=4"],
            "task=generate answers one prompt: leave decoding.batch_size=4 out",
        ),
    ],
)
def test_options_that_batches_do_not_support_are_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        run_here(tmp_path / "run", *SMOKE, *overrides)
    assert str(refused.value) == message


def test_same_outputs_counts_equal_outputs_and_names_the_others(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "same_outputs.py"))
    outputs_of, compare, count = script["outputs_of"], script["compare"], len(KEYS)
    assert compare(outputs_of(runs.single), outputs_of(runs.batched)) == 0
    said = capsys.readouterr().out
    assert said == f"{count} of {count} outputs are equal, token for token; of plain decoding {count}\n"
    lines = read_lines(runs.batched)
    lines[2]["output_ids"][3] += 1
    write_prompts(tmp_path / "prompts.jsonl", *lines[:-1])
    assert compare(outputs_of(runs.single), outputs_of(tmp_path)) == 1
    where, equal, missing = capsys.readouterr().out.splitlines()
    assert where == f"{lines[2]['id']}, turn 1: parts at token 3"
    assert equal.startswith(f"{count - 2} of {count - 1} outputs are equal")
    assert missing == "1 turns are in one of the runs only"
    with pytest.raises(UserError, match="holds no finished prompts"):
        outputs_of(tmp_path / "nowhere")
