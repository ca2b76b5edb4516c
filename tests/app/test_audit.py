"""task=audit: its files, messages and exit status, resuming, and answers that are given as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from batched_answers import continued
from command_line import SMOKE, ErrorLine, read_result, run_here, said_by
from selfdraft.core.errors import UserError
from selfdraft.data.answers import load_answers
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import load_tiny

TASK = (*SMOKE, "task=audit", "model.dtype=float32", "logger=none")
LENGTH, END = 12, 258  # tokens of an answer, and the one that ends it
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_tiny("llama", 0, "float32", torch.device("cpu")).model


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(load_tiny("llama", 0, "float32", torch.device("cpu")).tokenizer)


@pytest.fixture(scope="module")
def clean(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Three answers, as an engine gives them, none of which ends by itself."""
    prompts = [[72, 101, 108 + number, 7] for number in range(20)]
    answers = [{"prompt_ids": prompt, "output_ids": continued(model, prompt, LENGTH)} for prompt in prompts]
    return [answer for answer in answers if END not in answer["output_ids"]][:3]


def write(path: Path, *lines: Mapping[str, Any] | str) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


def wrong(line: Mapping[str, Any], at: int) -> dict[str, Any]:
    """The answer with another token at a place; 257 is a special token that the model hardly writes."""
    output = list(line["output_ids"])
    output[at] = 257
    return {**line, "output_ids": output}


def test_clean_answers_are_exact(clean: list[dict[str, Any]], tmp_path: Path) -> None:
    said = said_by(tmp_path / "run", *TASK, f"audit.file={write(tmp_path / 'a.jsonl', *clean)}")
    lines, result = read(tmp_path / "run"), read_result(tmp_path / "run")
    assert [(line["id"], line["verdict"], line["tokens"]) for line in lines] == [
        (str(i), "exact", LENGTH) for i in (1, 2, 3)
    ]
    assert (result["answers"], result["exact"], result["tie"], result["mismatch"]) == (3, 3, 0, 0)
    assert "auditing 3 answers of a.jsonl by tiny llama in float32" in said
    assert "3 answers, 36 tokens: 3 exact, 0 tie, 0 mismatch" in said


def test_a_mismatch_ends_with_1_and_is_shown_first(
    clean: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {**clean[2], "id": "short", "output_ids": clean[2]["output_ids"][:5]}
    file = write(tmp_path / "a.jsonl", clean[0], {**wrong(clean[1], 4), "id": "wrong"}, short)
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path / "run", *TASK, f"audit.file={file}")
    assert ended.value.code == 1
    first, second, third = read(tmp_path / "run")
    assert first["verdict"] == "exact"
    assert (second["verdict"], second["reason"], second["first_divergence"]) == ("mismatch", "stock", 4)
    assert (second["written_id"], second["model_id"]) == (257, clean[1]["output_ids"][4])
    assert second["written"] == "<|im_start|>" and second["margin"] > second["control"]
    assert second["margin_in_dtype"] is None
    assert (third["reason"], third["first_divergence"], third["written_id"]) == ("length", 5, None)
    assert third["model_id"] == clean[2]["output_ids"][5]
    result = read_result(tmp_path / "run")
    assert result["reasons"] == {"stock": 1, "length": 1}
    said = capsys.readouterr().out
    assert "NOT THE MODEL'S OUTPUT: mismatch in wrong; short" in said
    assert "4 of 12" in said and "5 of 5" in said and "the end" in said
    # What an engine says about the end decides whether it is checked.
    ends: list[dict[str, Any]] = [{"finish_reason": "length"}, {"max_new_tokens": 5}, {"finish_reason": "word"}]
    every = [short | end | {"id": f"end {number}"} for number, end in enumerate(ends)]
    run_here(tmp_path / "right", *TASK, f"audit.file={write(tmp_path / 'b.jsonl', clean[0], *every)}")
    run_here(tmp_path / "longest", *TASK, f"audit.file={write(tmp_path / 'b.jsonl', short)}")
    ends = [{"finish_reason": "stop"}, {"max_new_tokens": 6}]
    every = [short | end | {"id": f"end {number}"} for number, end in enumerate(ends)]
    with pytest.raises(SystemExit):
        run_here(tmp_path / "early", *TASK, f"audit.file={write(tmp_path / 'b.jsonl', *every)}")
    assert [line["reason"] for line in read(tmp_path / "early")] == ["length"] * 2
    with pytest.raises(SystemExit):
        run_here(tmp_path / "m", *TASK, f"audit.file={write(tmp_path / 'b.jsonl', short)}", "audit.max_new_tokens=6")


def test_only_the_first_tokens_and_answers_are_checked(clean: list[dict[str, Any]], tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", wrong(clean[0], 8), clean[1], wrong(clean[2], 1))
    run_here(tmp_path / "run", *TASK, f"audit.file={file}", "audit.tokens=8", "audit.limit=2")
    assert [(line["verdict"], line["tokens"]) for line in read(tmp_path / "run")] == [("exact", 8)] * 2


def test_a_tie_is_told_with_both_tokens(clean: list[dict[str, Any]], tmp_path: Path) -> None:
    """In bfloat16, a token that float32 would not have written by a margin within rounding."""
    loaded = load_tiny("llama", 0, "bfloat16", torch.device("cpu"))
    lines = []
    for seed in range(6):
        prompt = [(seed * 37 + i * 11) % 250 + 1 for i in range(5)]
        lines.append({"prompt_ids": prompt, "output_ids": continued(loaded.model, prompt, 24)})
    options = ("model.dtype=bfloat16", f"audit.file={write(tmp_path / 'a.jsonl', *lines)}")
    said = said_by(tmp_path / "run", *TASK, *options)
    result, ties = read_result(tmp_path / "run"), [x for x in read(tmp_path / "run") if x["verdict"] == "tie"]
    assert result["tie"] == len(ties) >= 1 and result["mismatch"] == 0
    assert result["largest_tie_margin"] == max(line["margin"] for line in ties)
    for line in ties:
        output = lines[int(line["id"]) - 1]["output_ids"]
        assert line["written_id"] == output[line["first_divergence"]] != line["model_id"]
        assert 0 < line["margin"] <= line["control"]
        assert isinstance(line["margin_in_dtype"], float)
        assert line["written"] == loaded.tokenizer.decode([line["written_id"]])
    assert "largest margin of a tie: " in said


def text_of(chat: Chat, ids: list[int]) -> str:
    return chat.tokenizer.decode(ids)


@pytest.fixture(scope="module")
def readable(model: PreTrainedModel, chat: Chat) -> tuple[str, str]:
    """A prompt, and an answer that is text: bytes that are whole characters."""
    for number in range(200):
        prompt = f"Say {number}"
        answer = text_of(chat, continued(model, chat.tokenizer(prompt)["input_ids"], 3))
        if "\ufffd" not in answer and "<|" not in answer:
            return prompt, answer
    raise AssertionError("no prompt with a readable answer")


def test_prompts_and_outputs_as_text(readable: tuple[str, str], model: PreTrainedModel, chat: Chat, tmp_path: Path):
    prompt, answer = readable
    talk = chat.encode([(message["role"], message["content"]) for message in MESSAGES])
    file = write(
        tmp_path / "a.jsonl",
        {"prompt": prompt, "output": answer, "finish_reason": "length"},
        {"messages": MESSAGES, "output_ids": continued(model, talk, 3)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "output_ids": []},
    )
    with pytest.raises(SystemExit):
        run_here(tmp_path / "run", *TASK, f"audit.file={file}")
    verdicts = [(line["verdict"], line["reason"]) for line in read(tmp_path / "run")]
    assert verdicts == [("exact", None), ("exact", None), ("mismatch", "length")]


def test_a_text_cut_within_a_character_is_judged_up_to_there(
    tmp_path: Path, chat: Chat, model: PreTrainedModel
) -> None:
    for number in range(40):
        prompt = f"Say {number}"
        text = text_of(chat, continued(model, chat.tokenizer(prompt)["input_ids"], 2))
        if text.endswith("\ufffd") and "\ufffd" not in text[:-1]:
            break
    file = write(tmp_path / "a.jsonl", {"prompt": prompt, "output": text, "finish_reason": "stop"})
    run_here(tmp_path / "run", *TASK, f"audit.file={file}")
    (line,) = read(tmp_path / "run")
    assert line["verdict"] == "exact" and "within a character" in line["warning"]
    assert read_result(tmp_path / "run")["warnings"] == 1


def test_an_audit_resumes_after_its_last_line(clean: list[dict[str, Any]], tmp_path: Path) -> None:
    file, folder = write(tmp_path / "a.jsonl", *clean), tmp_path / "run"
    run_here(folder, *TASK, f"audit.file={file}")
    whole = (folder / "audit.jsonl").read_bytes()
    marked = whole.splitlines(keepends=True)[0].replace(b'"ties": 0', b'"ties": 7')
    (folder / "audit.jsonl").write_bytes(marked + b'{"id": "torn')
    said = said_by(folder, *TASK, f"audit.file={file}")
    assert "1 of 3 answers were judged before" in said
    assert (folder / "audit.jsonl").read_bytes() == marked + b"".join(whole.splitlines(keepends=True)[1:])
    write(file, *clean[:2])
    with pytest.raises(UserError, match=r"was begun with another content of audit\.file"):
        run_here(folder, *TASK, f"audit.file={file}")
    write(file, *clean)
    (folder / "audit.jsonl").write_text('{"id": "1", "turn": 0, "verdict": "good", "tokens": 3}\n')
    with pytest.raises(UserError, match=r"audit\.jsonl: the line of id '1', turn 0: `verdict` is none of exact, tie"):
        run_here(folder, *TASK, f"audit.file={file}")


def test_an_answer_longer_than_the_positions_is_left_out(clean: list[dict[str, Any]], tmp_path: Path) -> None:
    long = {"prompt_ids": [1] * 5000, "output_ids": [1]}
    said = said_by(tmp_path / "run", *TASK, f"audit.file={write(tmp_path / 'a.jsonl', clean[0], long)}")
    result = read_result(tmp_path / "run")
    assert (result["answers"], result["exact"], result["left_out"]) == (2, 1, 1)
    assert "left out: 1 answers" in said


GOOD = {"prompt_ids": [1], "output_ids": [2]}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([GOOD, "{"], r"a\.jsonl:2: malformed JSON"),
        ([GOOD, "[1]"], r"a\.jsonl:2: a JSON array"),
        ([GOOD, {"output_ids": [2]}], r"a\.jsonl:2: no prompt; give `prompt_ids`, `messages` or `prompt`"),
        ([{"prompt_ids": [1]}], r"a\.jsonl:1: no output; give `output_ids` or `output`"),
        ([GOOD | {"prompt_ids": []}], r"a\.jsonl:1: `prompt_ids` is empty"),
        ([GOOD | {"output_ids": [2.0]}], r"a\.jsonl:1: `output_ids` must be a list of token ids"),
        ([GOOD | {"output_ids": [True]}], r"a\.jsonl:1: `output_ids` must be a list of token ids"),
        ([{"prompt": 3, "output": "a"}], r"a\.jsonl:1: `prompt` is a JSON number; it must be a string"),
        ([{"messages": [], "output": "a"}], r"a\.jsonl:1: `messages` must be a list of at least one"),
        ([{"messages": [{"role": "user"}], "output": "a"}], r"a\.jsonl:1: `messages` must be"),
        (['{"prompt": "\\ud83d", "output": "a"}'], r"a\.jsonl:1: `prompt` has \\ud83d, one half of a character"),
        ([GOOD | {"finish_reason": "tool_calls"}], r"a\.jsonl:1: `finish_reason` is 'tool_calls'"),
        ([GOOD | {"max_new_tokens": 0}], r"a\.jsonl:1: `max_new_tokens` must be a whole number of at least 1"),
        ([GOOD | {"id": "x"}, GOOD | {"id": "x"}], r"a\.jsonl:2: the id 'x' is already that of line 1"),
        ([], r"a\.jsonl holds no answer"),
    ],
)
def test_malformed_files_are_named_with_their_line(lines: list[Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        load_answers(write(tmp_path / "a.jsonl", *lines))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([GOOD, GOOD | {"output_ids": [99999]}], r"a\.jsonl:2: `output_ids` holds 99999, but the model has \d+"),
        ([{"prompt": "", "output": "a"}], r"a\.jsonl:1: `prompt` gives no token"),
        ([GOOD, "{"], r"a\.jsonl:2: malformed JSON"),
    ],
)
def test_lines_that_do_not_fit_the_model_are_named(lines: list[Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        run_here(tmp_path / "run", *TASK, f"audit.file={write(tmp_path / 'a.jsonl', *lines)}")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], "task=audit needs a file of answers: audit.file=answers.jsonl"),
        (["audit.file=nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["decoding=sample", "audit.file=a"], "task=audit checks greedy answers"),
        (["hardware=cpu_ddp", "audit.file=a"], "task=audit runs in one process"),
        (["decoding.stop=[x]", "audit.file=a"], "decoding.stop: an audit does not know"),
    ],
)
def test_wrong_options_give_one_line(overrides: list[str], reason: str, error_line: ErrorLine) -> None:
    assert error_line("task=audit", *overrides).startswith(reason)


def test_our_own_runs_can_be_audited(tmp_path: Path) -> None:
    """prompts.jsonl has the keys of a file of answers."""
    run_here(tmp_path / "own", *SMOKE, "dataset.limit=2", "drafter=prompt_lookup", "model.dtype=float32")
    run_here(tmp_path / "run", *TASK, f"audit.file={tmp_path / 'own' / 'prompts.jsonl'}")
    lines = read(tmp_path / "run")
    assert {line["verdict"] for line in lines} == {"exact"} and max(line["turn"] for line in lines) == 1
