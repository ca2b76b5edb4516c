"""The line that a wrong command ends with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from command_line import SMOKE, ErrorLine, run_here
from made import measure_once
from selfdraft.app.terminal.errors import FULL_ERROR, TERSE, one_line_errors
from selfdraft.data import tables
from selfdraft.tracking.display import picture


@pytest.fixture(scope="module", autouse=True)
def quick_runs() -> Iterator[None]:
    """In this process runs leave out three things that take a third of a short one each, and that other tests look at.

    A picture is drawn, but not arranged (see tests/tracking); a dataset's folder is not read in a process of its own
    first (see tests/data); costs are measured in one round (see tests/models).
    """

    def plain(figsize: tuple[float, float], dpi: int, layout: str) -> Figure:
        return Figure(figsize=figsize, dpi=dpi / 6)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "Figure", plain)
        patch.setattr(tables, "_refuse_what_ends_the_process", lambda *_: None)
        measure_once(patch)
        yield


@pytest.fixture
def error_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ErrorLine:
    """The one line that a smoke run with these overrides ends with."""

    def line(*overrides: str) -> str:
        for name in (FULL_ERROR, TERSE):
            monkeypatch.delenv(name, raising=False)
        capsys.readouterr()  # what making the inputs said
        with pytest.raises(SystemExit) as ended, one_line_errors():
            run_here(tmp_path / "run", *SMOKE, *overrides)
        assert ended.value.code == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("selfdraft: ")
        return said.removeprefix("selfdraft: ")

    return line
