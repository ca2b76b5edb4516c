"""task=distill_data: its files, that they hold the model's own answers, and resuming after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from command_line import SMOKE, read_lines, read_result, run, run_here, said_by, start, wait_until
from selfdraft.core.errors import UserError
from selfdraft.data.distilled import load_texts
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.tiny import tiny_tokenizer

TASK = (*SMOKE, "task=distill_data", "drafter=prompt_lookup", "decoding.batch_size=4")


def read_texts(folder: Path) -> list[dict[str, Any]]:
    """texts.jsonl."""
    return [json.loads(line) for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()]


def texts_of(folder: Path) -> list[dict[str, Any]]:
    """The same, in the order of prompts and turns."""
    return sorted(read_texts(folder), key=lambda line: (int(line["id"]), line["turn"]))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run's folder and its printed output."""
    folder = tmp_path_factory.mktemp("distilled")
    return folder, " ".join(said_by(folder, *TASK).split())


def test_distilled_answers_equal_those_of_the_baseline(written: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = written
    run_here(tmp_path, *SMOKE, "drafter=none")
    expected = {(line["id"], line["turn"]): line for line in read_lines(tmp_path)}
    lines = texts_of(folder)
    assert {(line["id"], line["turn"]) for line in lines} == set(expected)
    assert max(line["turn"] for line in lines) == 1  # a conversation is among them, and went on with its own answer
    for line in lines:
        for name in ("prompt_ids", "output_ids", "text"):
            assert line[name] == expected[line["id"], line["turn"]][name]


def test_the_dataset_has_every_line_and_the_result_counts_them(written: tuple[Path, str]) -> None:
    folder, said = written
    lines, result = texts_of(folder), read_result(folder)
    texts = load_texts(folder)
    assert {(t.id, *t.prompt, -1, *t.answer) for t in texts} == {
        (line["id"], *line["prompt_ids"], -1, *line["output_ids"]) for line in lines
    }
    assert result["texts"] == len(texts) == len(lines)
    assert result["tokens"] == sum(len(line["output_ids"]) for line in lines)
    assert result["tokens_per_forward"] == result["tokens"] / sum(line["target_forwards"] for line in lines)
    assert result["tokens_per_s"] == result["objective"] > 0
    assert result["left_out"] == 0
    assert f"{len(lines)} texts, {result['tokens']} tokens in " in said
    assert said.split(" results: ")[0].endswith("/dataset")


def test_trajectories_end_at_the_answer(tmp_path: Path) -> None:
    options = ("distill.trajectories=4", "dataset.limit=2", "decoding.batch_size=2")
    run_here(tmp_path / "long", *TASK, *options, "distill.passes=99")
    run_here(tmp_path / "short", *TASK, *options, "distill.passes=2")
    whole, cut = load_texts(tmp_path / "long"), load_texts(tmp_path / "short")
    assert whole
    for text, other in zip(whole, cut, strict=True):
        assert text.trajectory[-1] == text.answer == other.answer  # a block of 4 is right after 4 passes
        assert 2 <= len(text.trajectory) <= 5
        assert all(len(iterate) == len(text.answer) for iterate in text.trajectory)
        assert set(text.trajectory[0]) <= set(text.prompt)
        assert other.trajectory == text.trajectory[:3]
        for passes, iterate in enumerate(text.trajectory):  # and each pass settles one token more of each block
            right = [a == b for a, b in zip(iterate, text.answer, strict=True)]
            assert all(right[i] for i in range(len(right)) if i % 4 < passes)
    assert any(len(text.trajectory) > 2 for text in whole)


def test_recording_trajectories_does_not_change_answers(written: tuple[Path, str], tmp_path: Path) -> None:
    run_here(tmp_path, *TASK, "distill.trajectories=8", "drafter=early_exit", "drafter.path.exit_layer=2")
    assert [line["output_ids"] for line in texts_of(tmp_path)] == [line["output_ids"] for line in texts_of(written[0])]


def test_a_run_resumes_after_losing_any_line(written: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = written
    whole = (folder / "texts.jsonl").read_bytes()
    some = b"".join(whole.splitlines(keepends=True)[:3])
    (tmp_path / "texts.jsonl").write_bytes(some + b'{"id": "torn')
    for name in ("config.yaml", "selfdraft.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    said = " ".join(said_by(tmp_path, *TASK).split())
    done = len({json.loads(line)["id"] for line in some.splitlines()})
    assert f"{done} of " in said
    assert "prompts were finished before" in said
    assert (tmp_path / "texts.jsonl").read_bytes().startswith(some)
    assert [line["output_ids"] for line in texts_of(tmp_path)] == [line["output_ids"] for line in texts_of(folder)]
    assert load_texts(tmp_path) == load_texts(folder)
    with pytest.raises(UserError, match=r"decoding\.max_new_tokens 16 there but 8 now"):
        run_here(tmp_path, *TASK, "decoding.max_new_tokens=8")
    with pytest.raises(UserError, match=r"holds a run of task=distill_data, and this is task=evaluate"):
        run_here(tmp_path, *SMOKE)  # nor may an evaluation move in


LONG = (*TASK, "dataset.per_category=2", "decoding.max_new_tokens=32", "decoding.batch_size=2", "drafter=none")


def finished(folder: Path) -> int:
    path = folder / "texts.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_kill_9_keeps_finished_answers(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = start(folder, *LONG)
    try:
        wait_until(running, lambda: finished(folder) >= 1)
        os.killpg(running.pid, signal.SIGSTOP)  # so that it does not end meanwhile
        with pytest.raises(UserError, match="is in use by another run"):
            run_here(folder, *LONG)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    kept = (folder / "texts.jsonl").read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1]
    assert 1 <= kept.count(b"\n") < 12
    with pytest.raises(UserError, match="is not finished"):
        load_texts(folder)
    run_here(folder, *LONG)
    assert (folder / "texts.jsonl").read_bytes().startswith(kept)
    keys = [(line["id"], line["turn"]) for line in texts_of(folder)]
    assert len(set(keys)) == len(keys) == len(load_texts(folder)) >= 12


def test_sigterm_ends_the_run_before_the_last_text(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = start(folder, *LONG)
    wait_until(running, lambda: finished(folder) >= 1)
    os.killpg(running.pid, signal.SIGTERM)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert f"finished texts are kept: the same command with hydra.run.dir={folder} goes on" in " ".join(out.split())
    assert "Traceback" not in out + err
    assert 1 <= len(read_texts(folder)) < 12


def test_sampled_answers_are_those_of_an_evaluation_and_differ_by_seed(tmp_path: Path) -> None:
    sampled = (*TASK, "decoding=sample", "decoding.batch_size=4", "dataset.limit=2", "decoding.max_new_tokens=8")
    run_here(tmp_path / "a", *sampled)
    run_here(tmp_path / "b", *sampled, "seed=1")
    evaluation = ("decoding=sample", "drafter=none", "dataset.limit=2", "decoding.max_new_tokens=8")
    run_here(tmp_path / "c", *SMOKE, *evaluation)
    a, b = ([line["output_ids"] for line in texts_of(tmp_path / name)] for name in "ab")
    lines = sorted(read_lines(tmp_path / "c"), key=lambda line: (int(line["id"]), line["turn"]))
    assert [line["output_ids"] for line in lines] == a != b


def test_turns_beyond_the_model_s_positions_are_left_out_and_counted(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": 1, "turns": ["a", "b " * 3000]}, {"id": 2, "prompt": "c"}, {"id": 3, "prompt": "d " * 3000}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = ("dataset=jsonl", f"dataset.path={prompts}", "dataset.per_category=null", "decoding.max_new_tokens=4")
    said = said_by(tmp_path / "run", *TASK, *more)
    assert [(line["id"], line["turn"]) for line in texts_of(tmp_path / "run")] == [("1", 0), ("2", 0)]
    assert read_result(tmp_path / "run")["left_out"] == 2
    assert "2 turns were left out" in said


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["decoding=sample", "distill.trajectories=4"], r"greedy decoding only: use decoding=greedy"),
        (["hardware=cpu_ddp", "hardware.tree_parallel=true"], r"leave tree_parallel and tensor_parallel out"),
        (["distill.samples=2"], r"distill\.samples=2: greedy decoding writes one answer again and again"),
        (["distill.samples=0"], r"distill\.samples=0: must be at least 1"),
        (["distill.trajectories=1"], r"distill\.trajectories=1: must be at least 2"),
    ],
)
def test_invalid_distillations_give_one_clear_line(overrides: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        run_here(tmp_path, *TASK, *overrides)


@pytest.mark.slow
def test_two_processes_share_the_prompts(written: tuple[Path, str], tmp_path: Path) -> None:
    done = run(*TASK, "hardware=cpu_ddp", f"hydra.run.dir={tmp_path}/two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line["rank"] for line in texts_of(tmp_path / "two")} == {0, 1}
    assert load_texts(tmp_path / "two") == load_texts(written[0])
    assert done.stdout.count("written: ") == 1


def test_invented_prompts_are_answered_like_others(tmp_path: Path) -> None:
    """Another batch size, or resuming after a kill, invents the same prompts."""
    options = (*TASK, "decoding=sample", "distill.invented=5", "dataset.limit=2", "decoding.max_new_tokens=8")
    said = " ".join(said_by(tmp_path / "one", *options).split())
    assert "7 prompts (5 of its own making, 2 of bundled)" in said
    lines = {line["id"]: line for line in read_texts(tmp_path / "one")}
    invented = [line for line in lines.values() if line["category"] == "invented"]
    assert sorted(line["id"] for line in invented) == [f"invented 0.{i}" for i in range(5)]
    assert len({tuple(line["prompt_ids"]) for line in invented}) == 5
    chat = Chat(tiny_tokenizer())
    for line in invented:
        opening = chat.opening()
        assert line["prompt_ids"][: len(opening)] == opening
        assert len(line["prompt_ids"]) > len(opening) + 5  # the question and the template's end
        assert line["invented_s"] > 0
    # What was finished is kept, and the rest invented anew is the same.
    kept = [json.dumps(lines[name]) + "\n" for name in ("invented 0.1", "invented 0.3")]
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "dataset")
    (tmp_path / "two" / "result.json").unlink()
    (tmp_path / "two" / "texts.jsonl").write_text("".join(kept), encoding="utf-8")
    run_here(tmp_path / "two", *options)
    again = {line["id"]: line for line in read_texts(tmp_path / "two")}
    assert {name: (line["prompt_ids"], line["output_ids"]) for name, line in again.items()} == {
        name: (line["prompt_ids"], line["output_ids"]) for name, line in lines.items()
    }


def test_several_answers_to_a_prompt_are_those_of_separate_prompts(tmp_path: Path) -> None:
    """Prefilled once for all, or one by one under the names that the seeds follow from: the same tokens."""
    prompts = [json.dumps({"id": str(i), "turns": ["a question", "and another"][: 1 + i]}) for i in range(2)]
    named = [json.dumps({**json.loads(p), "id": f"{i}, sample {s}"}) for i, p in enumerate(prompts) for s in (2, 3)]
    sampled = (*SMOKE, "task=distill_data", "drafter=none", "decoding=sample", "decoding.max_new_tokens=8")
    sampled = (*sampled, "dataset=jsonl", "dataset.per_category=null")
    (tmp_path / "few.jsonl").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    (tmp_path / "all.jsonl").write_text("\n".join([*prompts, *named]) + "\n", encoding="utf-8")
    together = (*sampled, f"dataset.path={tmp_path}/few.jsonl", "distill.samples=3", "distill.rows=4")
    said = " ".join(said_by(tmp_path / "a", *together).split())
    assert "3 answers to each" in said
    run_here(tmp_path / "b", *sampled, f"dataset.path={tmp_path}/all.jsonl", "distill.rows=1")
    a, b = ({(line["id"], line["turn"]): line for line in read_texts(tmp_path / name)} for name in "ab")
    assert set(a) == set(b) and len(a) == 9  # every answer goes on with its own second turn
    assert {key: line["output_ids"] for key, line in a.items()} == {key: line["output_ids"] for key, line in b.items()}
    assert len({tuple(line["output_ids"]) for (_, turn), line in a.items() if turn == 0}) == 6
    assert read_result(tmp_path / "a")["left_out"] == 0
    # In the dataset all answers have the prompt's id, in the order of prompts, answers and turns.
    texts = load_texts(tmp_path / "a")
    assert [text.id for text in texts] == ["0"] * 3 + ["1"] * 6
    assert [text.answer for text in texts] == [a[key]["output_ids"] for key in sorted(a)]
    # An interrupted run keeps what it has, and writes the rest.
    whole = (tmp_path / "a" / "texts.jsonl").read_bytes().splitlines(keepends=True)
    shutil.rmtree(tmp_path / "a" / "dataset")
    (tmp_path / "a" / "result.json").unlink()
    (tmp_path / "a" / "texts.jsonl").write_bytes(b"".join(whole[:4]))
    run_here(tmp_path / "a", *together)
    assert (tmp_path / "a" / "texts.jsonl").read_bytes().startswith(b"".join(whole[:4]))
    assert load_texts(tmp_path / "a") == texts


def test_a_prompt_is_invented_once_for_all_its_answers(tmp_path: Path) -> None:
    options = (*TASK, "decoding=sample", "distill.invented=3", "dataset.limit=1", "decoding.max_new_tokens=8")
    run_here(tmp_path / "one", *options)
    run_here(tmp_path / "two", *options, "distill.samples=2")
    one, two = ({(line["id"], line["turn"]): line for line in read_texts(tmp_path / name)} for name in ("one", "two"))
    assert len(two) == 2 * len(one)
    for (name, turn), line in one.items():
        first, other = two[name, turn], two[f"{name}, sample 2", turn]
        for key in ("prompt_ids", "output_ids"):
            assert first[key] == line[key]
        assert other["output_ids"] != line["output_ids"]
        assert other["prompt_ids"] == line["prompt_ids"] or turn > 0  # where it goes on with its own answer
        assert "invented_s" not in other and ("invented_s" in first) == ("invented" in name)
    # After a kill that left one answer to an invented prompt, the prompt is invented again for the other.
    kept = json.dumps(two["invented 0.1, sample 2", 0]) + "\n"
    shutil.rmtree(tmp_path / "two" / "dataset")
    (tmp_path / "two" / "result.json").unlink()
    (tmp_path / "two" / "texts.jsonl").write_text(kept, encoding="utf-8")
    run_here(tmp_path / "two", *options, "distill.samples=2")
    again = {(line["id"], line["turn"]): line for line in read_texts(tmp_path / "two")}
    assert {name: line["output_ids"] for name, line in again.items()} == {
        name: line["output_ids"] for name, line in two.items()
    }


def test_prompts_whose_names_are_those_of_other_answers_are_refused(tmp_path: Path) -> None:
    lines = [json.dumps({"id": name, "prompt": "a"}) for name in ("1", "1, sample 2")]
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    more = ("dataset=jsonl", f"dataset.path={tmp_path}/p.jsonl", "dataset.per_category=null", "decoding=sample")
    with pytest.raises(UserError, match="would also be the name of an answer to the prompt"):
        run_here(tmp_path / "run", *TASK, *more, "distill.samples=2")


def test_the_number_of_texts_at_once_is_measured_and_changes_no_answer(
    written: tuple[Path, str], tmp_path: Path
) -> None:
    said = " ".join(said_by(tmp_path, *TASK, "drafter=none", "decoding.batch_size=1").split())
    rows = read_result(tmp_path)["batch_size"]
    assert 1 < rows <= len({line["id"] for line in texts_of(tmp_path)})
    assert f"{rows} texts at once" in said
    assert [line["output_ids"] for line in texts_of(tmp_path)] == [line["output_ids"] for line in texts_of(written[0])]
    run_here(tmp_path / "given", *TASK, "decoding.batch_size=1", "distill.rows=3", "dataset.limit=2")
    assert read_result(tmp_path / "given")["batch_size"] == 3


def test_sources_are_mixed_and_families_held_out(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("a plain text\nand another one\n", encoding="utf-8")
    sources = f"distill.sources=[dataset,bundled 2,'text:{notes}']"
    options = (sources, "distill.prompts=8", "distill.held_out=[qa]", "dataset.per_category=2")
    run_here(tmp_path / "run", *TASK, *options, "decoding.max_new_tokens=4")
    result = read_result(tmp_path / "run")
    assert result["sources"] == {"dataset": 2, "bundled": 4, f"text:{notes}": 2}
    assert (result["prompts"], result["plain_texts"]) == (6, 2)
    assert "qa" not in {line["category"] for line in read_texts(tmp_path / "run")}
    plain = [text for text in load_texts(tmp_path / "run") if not text.prompt]
    assert sorted(tuple(text.answer) for text in plain) == sorted(
        tuple(tiny_tokenizer().encode(text)) for text in ("a plain text", "and another one")
    )
    with pytest.raises(UserError, match=r"distill\.prompts shares a number among distill\.sources"):
        run_here(tmp_path / "no", *TASK, "distill.prompts=8")
    with pytest.raises(UserError, match=r"distill\.held_out: no prompt is left"):
        run_here(tmp_path / "none", *TASK, "dataset.categories=[qa]", "distill.held_out=[qa]")


def test_greedy_decoding_cannot_invent_prompts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use decoding=sample"):
        run_here(tmp_path, *TASK, "distill.invented=5")
