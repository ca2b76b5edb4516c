"""The line that a wrong command ends with."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import SMOKE, ErrorLine, run_here
from selfdraft.app.errors import FULL_ERROR, TERSE, one_line_errors


@pytest.fixture
def error_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ErrorLine:
    """The one line that a smoke run with these overrides ends with."""

    def line(*overrides: str) -> str:
        for name in (FULL_ERROR, TERSE):
            monkeypatch.setenv(name, "to be restored")
            monkeypatch.delenv(name)
        capsys.readouterr()  # what making the inputs said
        with pytest.raises(SystemExit) as ended, one_line_errors():
            run_here(tmp_path / "run", *SMOKE, *overrides)
        assert ended.value.code == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("selfdraft: ")
        return said.removeprefix("selfdraft: ")

    return line
