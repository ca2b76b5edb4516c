"""Terminal output is escaped: control sequences in texts neither take effect nor break the output."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from command_line import ROOT, SMOKE, environment, run, said_by, write_prompts
from forked import run_forked
from selfdraft.app.sweeps.sweep_table import SweepTable
from selfdraft.app.terminal.console import PlainConsole, Shielded, make_console, shielded_output, tell_in_passing
from selfdraft.app.terminal.errors import FULL_ERROR, TERSE, fail, one_line_errors, one_line_script
from selfdraft.core.errors import UserError

EVIL = "\x1b]0;owned\x07 \x1b[2J[/] [bold]x[/bold] :smile: \x9b31m \u202e \ud800 $\\frac$"
SHOWN = "\\x1b]0;owned\\x07 \\x1b[2J[/] [bold]x[/bold] :smile: \\x9b31m \\u202e \\ud800 $\\frac$"


def raw_controls(text: str) -> set[str]:
    """The control characters in a text that a terminal would execute."""
    return {c for c in text if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f"}


def console(**options: object) -> PlainConsole:
    return PlainConsole(file=io.StringIO(), width=200, **options)


def test_text_is_printed_unchanged_except_for_control_sequences() -> None:
    out = console()
    out.print(EVIL)
    assert out.file.getvalue() == SHOWN + "\n"


def test_the_same_holds_inside_tables_texts_titles_and_bars() -> None:
    out = console()
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL, Text(EVIL))
    out.print(table, Text.assemble((EVIL, "bold")))
    with Progress(console=out) as bar:
        bar.add_task("x", total=1)
        print(EVIL)  # by anybody while a bar is shown
    assert raw_controls(out.file.getvalue()) == set()
    assert out.file.getvalue().count("[2J[/]") >= 4


def test_ctrl_c_before_a_run_begins_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (FULL_ERROR, TERSE):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "selfdraft: stopped; repeat the command to start it again\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_line_in_passing_is_for_terminals_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    tell_in_passing("starting …")
    tell_in_passing("")
    told, cleared, rest = stream.getvalue().split("\r") if is_terminal else ("", "", stream.getvalue())
    assert (told.strip(), cleared.strip(), rest) == ("starting …" if is_terminal else "", "", "")
    assert len(told) == len(cleared)


def test_styles_and_a_status_with_markup_in_it_still_work_on_a_terminal() -> None:
    out = console(force_terminal=True, color_system="standard")
    with out.status(f"loading {EVIL}") as status:
        status.update(Text("x[/]y"))
    out.print(Text("good", "green"))
    assert "\x1b[32mgood\x1b[0m" in out.file.getvalue()
    assert "\x1b]0;" not in out.file.getvalue() and "\x1b[2J" not in out.file.getvalue()


def test_plain_prints_are_escaped_and_progress_bars_still_work(capsys: pytest.CaptureFixture[str]) -> None:
    with shielded_output():
        print(EVIL)
        print(EVIL, file=sys.stderr)
        sys.stderr.write("\r 50% of \x1b[2J\r")  # as tqdm does
        sys.stdout.writelines(["\x1b[A", "a\rb\n"])
        make_console().print("[/]")
        with shielded_output():  # twice is once
            print("\x07")
    said = capsys.readouterr()
    assert said.out == f"{SHOWN}\n\\x1b[Aa\\x0db\n[/]\n\\x07\n"
    assert said.err == f"{SHOWN}\n\r 50% of \\x1b[2J\r"


def test_tqdm_may_move_the_cursor_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Shielded(Terminal())
    for part in ("\n\n", "\x1b[A\x1b[A", "x\x1b[A"):
        stream.write(part)
    assert stream.getvalue() == "\n\n\x1b[A\x1b[Ax\\x1b[A"


def test_a_console_under_a_shield_writes_its_styles_below_it() -> None:
    stream = io.StringIO()
    out = PlainConsole(file=Shielded(stream), force_terminal=True, color_system="standard")
    out.print(Text("good", "green"))
    assert stream.getvalue() == "\x1b[32mgood\x1b[0m\n"


def test_error_lines_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail(f"category {EVIL}")
    assert capsys.readouterr().err == f"selfdraft: category {SHOWN}\n"

    @one_line_script("script")
    def main(arguments: list[str]) -> None:
        raise UserError(EVIL)

    assert main([]) == 2
    assert capsys.readouterr().err == f"script: {SHOWN}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_of_any_encoding_takes_every_character(encoding: str) -> None:
    code = """
import sys
from rich.table import Table
from selfdraft.app.terminal.console import make_console, shield_output
shield_output()
table = Table("日本", "1.5×")
table.add_row("\\ud800", "━┈ …")
make_console().print(table)
print("naïve 日本 \\udcff", file=sys.stderr)
"""
    extra = {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment(**extra), capture_output=True)
    assert done.returncode == 0, done.stderr
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert "\\ud800" in out and "\\udcff" in err
    assert ("日本" in out) == (encoding == "utf-8")
    if encoding == "ascii":
        assert "1.5x" in out and "=. ..." in out
        assert "\\u2" not in out  # boxes are drawn in ASCII


SCRIPT = """
import os, sys
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
from selfdraft.app.terminal.errors import one_line_script

@one_line_script("script")
def main(arguments):
    print("a table")

sys.exit(main([]))
"""


def test_output_into_a_closed_pipe_gives_one_clear_line(tmp_path: Path) -> None:
    """In its own process, because unwritten output at its end must not raise an error either."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_forked(tmp_path / "script.py", [], cwd=tmp_path, env=environment(), timeout=300)
    assert done.returncode == 2
    assert done.stderr == "script: nothing more can be written: the program that read the output has ended\n"


def test_a_sweep_of_any_values_is_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = SweepTable(tmp_path / "x[/]y")
    table.folder.mkdir(parents=True)
    for number, value in enumerate(("[/]", "\x1b[2J \udcff")):
        table.add(number, [f"prompt={value}", f"seed={EVIL}"], str(table.folder / str(number)))
        table.finish(number, "completed", {"objective": 1.0 + number})
    table.show()
    said = capsys.readouterr().out
    assert raw_controls(said) == set()
    assert "\\x1b[2J" in said and "x[/]y/sweep.csv" in said and "\\x1b]0;owned" in said
    assert len(pd.read_csv(table.csv)) == 2


def test_a_run_in_a_folder_with_markup_in_its_name_and_prompts(tmp_path: Path) -> None:
    """An evaluation, a trace and an answer, with all user text that is printed."""
    rows = [{"id": EVIL, "category": EVIL, "turns": ["first", "second"]}, {"id": "[/]", "category": "$\\frac$ [/]"}]
    rows[1]["prompt"] = "x"
    prompts = write_prompts(tmp_path / "p.jsonl", *(json.dumps(r).replace("\\ud800", "") for r in rows))
    data = ("dataset=jsonl", f"dataset.path='{prompts}'", "dataset.per_category=null", "decoding.max_new_tokens=2")
    folder = tmp_path / "x[/]y"
    said = said_by(folder, *SMOKE, *data, "drafter=none")
    said += said_by(folder, *SMOKE, *data, "drafter=none")  # resumed
    assert raw_controls(said) == set()
    assert "x[/]y" in said and "\\x1b]0;owned" in said
    assert (folder / "result.json").exists() and (folder / "result.png").exists()


def test_control_sequences_in_an_answer_are_escaped(tmp_path: Path) -> None:
    for name in ("generate", "trace"):
        ask = (f"task={name}", "prompt=x", "decoding.max_new_tokens=64", "drafter=suffix", "drafter.costs=flat")
        assert raw_controls(said_by(tmp_path / f"x[/]y{name}", *SMOKE, *ask)) == set()


def test_an_error_line_in_an_ascii_terminal(tmp_path: Path) -> None:
    """In its own process, in which all output is escaped."""
    where = ("dataset=jsonl", "dataset.path='\x1b[2J日.jsonl'", f"hydra.run.dir={tmp_path}/run")
    done = run(*SMOKE, *where, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert raw_controls(done.stdout + done.stderr) == set()
    (line,) = done.stderr.splitlines()
    assert "\\x1b[2J\\u65e5.jsonl" in line


def test_the_environment_is_as_before_after_a_mistake_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (FULL_ERROR, TERSE):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit), one_line_errors():
        assert os.environ[FULL_ERROR] == os.environ[TERSE] == "1"
        raise UserError("told")
    assert FULL_ERROR not in os.environ and TERSE not in os.environ
    monkeypatch.setenv(FULL_ERROR, "0")
    with one_line_errors():
        assert TERSE not in os.environ
    assert os.environ[FULL_ERROR] == "0"
