import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from full_disk import limited_files
from selfdraft.core.errors import UserError
from selfdraft.tracking.files.records import RecordFile, merge_rank_files, rank_files, record_path


def line(id: str, turn: int = 0, **more):
    return {"id": id, "turn": turn, **more}


def test_lines_read_back_unchanged(tmp_path):
    file = RecordFile(tmp_path / "prompts.jsonl")
    lines = [line("a", text="two\nlines, naïve 日本\u2028"), line("a", 1), line("b", ids=[1, 2])]
    for each in lines:
        file.append(each)
    assert file.read() == lines
    assert file.done() == {("a", 0), ("a", 1), ("b", 0)}


def test_a_missing_file_has_no_lines(tmp_path):
    file = RecordFile(tmp_path / "prompts.jsonl")
    assert file.read() == []
    assert file.done() == set()
    assert not file.path.exists()


@pytest.mark.parametrize("torn", [b'{"id": "b", "tu', b'{"id": "b", "turn": 0}', b'\xe6\x97"}\n', b"\0\0\0\0\n"])
def test_an_incomplete_last_line_is_removed_before_the_next(tmp_path, torn):
    path = tmp_path / "prompts.jsonl"
    RecordFile(path).append(line("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)

    file = RecordFile(path)
    assert file.read() == [line("a")]
    assert path.read_bytes() == whole + torn  # reading changes nothing
    file.append(line("c"))
    assert [json.loads(raw) for raw in path.read_text().splitlines()] == [line("a"), line("c")]


def test_a_disk_that_fills_within_a_line_loses_only_that_line(tmp_path):
    file = RecordFile(tmp_path / "prompts.jsonl")
    file.append(line("a"))
    with limited_files(200), pytest.raises(OSError, match=r"prompts\.jsonl"):
        file.append(line("b", text="x" * 1000))
    assert RecordFile(file.path).read() == [line("a")]
    file.append(line("c"))
    file.append(line("b", text="x" * 1000))
    assert RecordFile(file.path).read() == [line("a"), line("c"), line("b", text="x" * 1000)]


def test_a_line_damaged_during_the_run_is_removed_before_the_next(tmp_path):
    """Here another program appends to the file, after this one has written."""
    file = RecordFile(tmp_path / "prompts.jsonl")
    file.append(line("a"))
    with file.path.open("ab") as other:
        other.write(b'{"id": "b", "tu')
    file.append(line("c"))
    assert RecordFile(file.path).read() == [line("a"), line("c")]


def test_a_file_removed_during_the_run_is_created_again(tmp_path):
    file = RecordFile(tmp_path / "prompts.jsonl")
    file.append(line("a"))
    file.path.unlink()
    file.append(line("b"))
    assert file.read() == [line("b")]


def test_a_lone_surrogate_reads_back(tmp_path):
    file = RecordFile(tmp_path / "prompts.jsonl")
    file.append(line("a\ud800", category="\udcff"))
    RecordFile(record_path(tmp_path, 1)).append(line("b"))
    assert merge_rank_files(tmp_path) == file.read() == [line("a\ud800", category="\udcff"), line("b")]


def test_a_complete_last_line_of_another_kind_is_named_and_kept(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "turn": 0}\n{"id": 7, "turn": "x"}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl:2 "):
        RecordFile(path).append(line("c"))
    assert path.read_text().count("\n") == 2


@pytest.mark.parametrize("bad", ["{torn", "[1]", '{"id": "x"}', '{"id": [1], "turn": 0}', "[" * 100_000, ""])
def test_a_malformed_earlier_line_is_named(tmp_path, bad):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"id": "a", "turn": 0}}\n{bad}\n{{"id": "c", "turn": 0}}\n')
    for act in (RecordFile(path).read, lambda: RecordFile(path).append(line("d"))):
        with pytest.raises(UserError, match=r"prompts\.jsonl:2 ") as caught:
            act()
        assert "\n" not in str(caught.value)


def test_a_value_that_json_cannot_hold_is_refused_before_writing(tmp_path):
    file = RecordFile(tmp_path / "prompts.jsonl")
    with pytest.raises(ValueError):
        file.append(line("a", margin=float("nan")))
    assert not file.path.exists()


def test_kill_9_loses_no_appended_line(tmp_path):
    script = textwrap.dedent("""
        import sys
        from selfdraft.tracking.files.records import RecordFile
        file = RecordFile(sys.argv[1])
        for number in range(10**6):
            file.append({"id": str(number), "turn": 0, "text": "x" * 5000})
            print(number, flush=True)
    """)
    path = tmp_path / "prompts.jsonl"
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(20):
            process.stdout.readline()
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        appended = 20 + len(process.stdout.read().splitlines())
    file = RecordFile(path)
    assert [each["id"] for each in file.read()][:appended] == [str(number) for number in range(appended)]
    file.append(line("after"))
    assert file.read()[-1] == line("after")


def test_ranks_merge_into_one_file_without_doubles(tmp_path):
    for rank, ids in {0: "ad", 1: "be", 2: "c", 10: "fa"}.items():
        for id in ids:
            RecordFile(record_path(tmp_path, rank)).append(line(id, rank=rank))
    record_path(tmp_path, 2).open("ab").write(b'{"id": "torn')

    assert [path.name for path in rank_files(tmp_path)] == [f"prompts.rank{rank}.jsonl" for rank in (1, 2, 10)]
    merged = merge_rank_files(tmp_path)
    assert [each["id"] for each in merged] == list("adbecf")
    assert merged[0]["rank"] == 0  # the one that rank 0 has already stays
    assert RecordFile(record_path(tmp_path)).read() == merged
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]
    assert merge_rank_files(tmp_path) == merged


def test_lines_of_other_ranks_merge_even_without_lines_of_rank_0(tmp_path):
    RecordFile(record_path(tmp_path, 3)).append(line("a"))
    assert merge_rank_files(tmp_path) == [line("a")]
    assert RecordFile(record_path(tmp_path)).done() == {("a", 0)}


def test_merging_nothing_creates_no_file(tmp_path):
    assert merge_rank_files(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
