"""The lock of a run folder, and the messages about file systems and disks that fail."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest.mock import patch

import pytest
from filelock import FileLock

from selfdraft.app.runs.session import adapter_facts, owned
from selfdraft.app.terminal.errors import explain
from selfdraft.core.errors import UserError
from selfdraft.drafters.presets import configured


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks_gives_one_clear_line(tmp_path: Path, error: Exception) -> None:
    with (
        patch.object(FileLock, "acquire", side_effect=error),
        pytest.raises(UserError, match=r"without locks.*choose another hydra"),
        owned(tmp_path, True, "evaluate"),
    ):
        pass


def test_a_folder_in_use_gives_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with (
        owned(tmp_path, True, "evaluate"),
        pytest.raises(UserError, match=r"in use by another run.*remove .*\.lock and repeat"),
        owned(tmp_path, True, "evaluate"),
    ):
        pass
    with owned(tmp_path, True, "evaluate"):
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EIO])
def test_disk_errors_give_one_clear_line(code: int) -> None:
    line = explain(OSError(code, "as the system calls it", "/there/it is"))
    assert line is not None
    assert line.startswith("/there/it is: ")
    assert "\n" not in line


def test_a_full_disk_without_a_file_name_gives_one_clear_line() -> None:
    line = explain(OSError(errno.ENOSPC, "No space left on device"))
    assert line == "nothing more can be written: the disk is full: make room, and the same command goes on"
    assert explain(OSError(errno.EACCES, "by whatever it was")) is None


def test_an_adapter_in_an_unknown_user_s_home_gives_one_clear_line() -> None:
    config = configured("layer_skip", adapter="~nobody-of-this-name/x")
    with pytest.raises(UserError, match=r"^drafter\.path\.adapter=~nobody-of-this-name/x: there is no home folder"):
        adapter_facts(config)
