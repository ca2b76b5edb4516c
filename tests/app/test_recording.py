"""What a run leaves to read: run.log and status.json, also of a run that fails."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from command_line import SMALLEST, SMOKE, run_here, said_by, tamper
from selfdraft.app.options.schema_model import TinyModelConfig
from selfdraft.app.runs.recording import recorded
from selfdraft.app.terminal.console import make_console
from selfdraft.core.errors import UserError
from selfdraft.drafters.suffix import Suffix
from selfdraft.tracking.files.run_status import RunStatus


def test_the_log_has_what_is_printed_and_no_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    with recorded(tmp_path / "run.log"):
        make_console(force_terminal=True).print("[bold] is no markup", style="red")
        print("by print\x1b[2J")
        print("\r 40 %", end="")
    print("afterwards")
    log = (tmp_path / "run.log").read_text()
    assert log == "[bold] is no markup\nby print\\x1b[2J\n"
    assert "\x1b[31m" in terminal.getvalue() and "40 %" in terminal.getvalue()


def test_a_run_leaves_its_output_and_that_it_completed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = said_by(folder, *SMALLEST, "drafter=suffix")
    log = (folder / "run.log").read_text()
    assert "loading tiny llama …" in log and "tokens per forward" in log
    assert {line for line in log.splitlines() if "…" in line} <= set(said.splitlines())
    status = RunStatus.read(folder)
    assert status is not None and (status.status, status.reason) == ("completed", "") and status.seconds > 0


def test_a_run_that_fails_leaves_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise UserError("its weights are gone")

    monkeypatch.setattr(TinyModelConfig, "_load", load)
    with pytest.raises(SystemExit), monkeypatch.context() as terse:
        terse.setenv("SELFDRAFT_TERSE_ERRORS", "1")
        run_here(tmp_path / "mistake", *SMALLEST)
    assert (tmp_path / "mistake/run.log").read_text().endswith("selfdraft: its weights are gone\n")
    assert RunStatus.read(tmp_path / "mistake") == RunStatus(
        "failed", "its weights are gone", RunStatus.read(tmp_path / "mistake").seconds
    )

    def crash(*_: object) -> None:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(TinyModelConfig, "_load", crash)
    with pytest.raises(ZeroDivisionError):
        run_here(tmp_path / "bug", *SMALLEST)
    log = (tmp_path / "bug/run.log").read_text()
    assert "Traceback" in log and "in crash" in log
    assert json.loads((tmp_path / "bug/status.json").read_text())["reason"] == "ZeroDivisionError: of nothing"


def test_a_mismatch_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Suffix, "observe", tamper)
    with pytest.raises(SystemExit):
        run_here(tmp_path / "run", *SMALLEST, "drafter=suffix")
    status = RunStatus.read(tmp_path / "run")
    assert status is not None and status.status == "failed" and status.reason.startswith("not lossless: mismatch in")


@pytest.mark.parametrize(
    "options",
    [
        ("drafter=layer_skip", "drafter.path.skip_mlp=[90]"),
        ("drafter=early_exit", "drafter.path.exit_layer=90"),
        ("task=finetune", "finetune.keep_layers=[90]", "finetune.data=[gsm8k]"),
    ],
    ids=lambda options: options[0],
)
def test_layers_that_do_not_exist_are_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(TinyModelConfig, "_load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=r"90.*this model"):
        run_here(tmp_path / "run", *SMOKE, *options)
    assert not (tmp_path / "run").exists()
