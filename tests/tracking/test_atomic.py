import errno
import json
import os
import stat

import pytest

from full_disk import limited_files
from selfdraft.app.terminal.errors import OF_THE_DISK, explain
from selfdraft.tracking.files.atomic import append_whole, write_json_atomic, write_text_atomic


def test_json_files_are_replaced_atomically(tmp_path):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"a": 1})
    write_json_atomic(path, {"b": "naïve", "c": [1.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": "naïve", "c": [1.5, None]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_a_value_that_json_cannot_hold_keeps_the_old_file(tmp_path, value):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json_atomic(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match="folder"):
        write_text_atomic(path, "text")
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text_atomic(tmp_path / "atomic", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_a_full_disk_keeps_the_old_file_and_gives_one_clear_line(tmp_path):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"a": 1})
    with limited_files(100), pytest.raises(OSError) as caught:
        write_json_atomic(path, {"a": "x" * 1000})
    assert explain(caught.value) == f"{path}: {OF_THE_DISK[errno.EFBIG]}"
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_partial_write_is_undone(tmp_path):
    """The system writes what fits and returns the count, which must be checked."""
    path = tmp_path / "lines"
    append_whole(path, b"first\n")
    with limited_files(100), pytest.raises(OSError, match="lines"):
        append_whole(path, b"x" * 1000 + b"\n")
    assert path.read_bytes() == b"first\n"
    append_whole(path, b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt, b"first\nsecond\n"), (OSError, b"first\n")])
def test_a_whole_line_outlives_a_signal_but_not_a_broken_disk(tmp_path, monkeypatch, error, kept):
    def fail(_):
        raise error

    path = tmp_path / "lines"
    append_whole(path, b"first\n")
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(os, "fsync", fail)
        append_whole(path, b"second\n")
    assert path.read_bytes() == kept


def test_a_lone_surrogate_is_escaped_and_reads_back(tmp_path):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"category \ud800": ["\udc80", "日本"]})
    assert json.loads(path.read_bytes()) == {"category \ud800": ["\udc80", "日本"]}
    assert "日本" in path.read_text(encoding="utf-8")
