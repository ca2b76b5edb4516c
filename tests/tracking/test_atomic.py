import json
import stat

import pytest

from selfdraft.tracking.atomic import write_json_atomic, write_text_atomic


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"a": 1})
    write_json_atomic(path, {"b": "naïve", "c": [1.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": "naïve", "c": [1.5, None]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_carry_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json_atomic(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError):
        write_text_atomic(path, "text")
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text_atomic(tmp_path / "atomic", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1
