"""A conversation's history comes before the turn that is decoded, in every task that decodes prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import SMOKE, ErrorLine, read_lines, said_by, write_prompts
from selfdraft.models.loading.tiny import tiny_tokenizer

TALK = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Why?"), ("assistant", "So.")]
BEFORE = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in TALK[:-1]) + "<|im_start|>assistant\n"


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Overrides for a dataset of one conversation."""
    record = {"id": "a", "messages": [{"role": role, "content": text} for role, text in TALK]}
    path = write_prompts(tmp_path / "talk.jsonl", record)
    return [*SMOKE, "dataset=jsonl", f"dataset.path={path}", "decoding.max_new_tokens=4"]


@pytest.mark.parametrize("task", ["evaluate", "distill_data"])
def test_the_history_is_encoded_and_a_finished_run_is_known_again(tmp_path: Path, given: list[str], task: str) -> None:
    said_by(tmp_path / "run", *given, f"task={task}")
    name = "prompts.jsonl" if task == "evaluate" else "texts.jsonl"
    before = (tmp_path / "run" / name).read_bytes()
    said_by(tmp_path / "run", *given, f"task={task}")
    assert (tmp_path / "run" / name).read_bytes() == before
    if task == "evaluate":
        (line,) = read_lines(tmp_path / "run")
        assert line["prompt_text"] == "Why?"
        assert tiny_tokenizer().decode(line["prompt_ids"]) == BEFORE


def test_a_conversation_without_a_role_gives_one_clear_line(tmp_path: Path, error_line: ErrorLine) -> None:
    path = write_prompts(tmp_path / "talk.jsonl", {"messages": [{"role": "critic", "content": "No."}]})
    said = error_line("dataset=jsonl", f"dataset.path={path}")
    assert (
        said
        == f"{path}:1: message 1 of `messages` has `role` critic; it must be system, user (human) or assistant (gpt)."
    )
