"""Paths from users: `~` is the home folder; an error names the option."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdraft.core.errors import UserError
from selfdraft.core.paths import expanded, file_at

HOMELESS = ["~no-such-user/x", "~\0", "~\ud800/x"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/m", "model.path") == tmp_path / "m"
    assert expanded("a/~", "model.path") == Path("a/~")


@pytest.mark.parametrize("path", HOMELESS)
def test_a_tilde_without_a_home_folder_is_one_clear_error(path: str) -> None:
    with pytest.raises(UserError) as refused:
        expanded(path, "model.path")
    assert str(refused.value).startswith(f"model.path={path}: there is no home folder ~")


@pytest.mark.parametrize("path", [*HOMELESS, "a" * 300, "\0"])
def test_an_impossible_file_name_stays_as_written(path: str) -> None:
    assert file_at(path, "name") == Path(path)


def test_a_folder_is_resolved_to_the_file_in_it(tmp_path: Path) -> None:
    assert file_at(tmp_path, "name") == tmp_path / "name"
    assert file_at(tmp_path / "other", "name") == tmp_path / "other"
