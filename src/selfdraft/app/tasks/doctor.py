"""task=doctor: show what works for a model on this machine, and why the rest does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.table import Table
from rich.text import Text

from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.tasks.checkup import Checkup, Finding
from selfdraft.core.errors import UserError
from selfdraft.core.messages import printable
from selfdraft.tracking.files.atomic import write_json_atomic


def doctor(run: Run) -> None:
    """Try the model with every dtype, engine, attention function and drafter; print a table and write doctor.json.

    Raises:
        UserError: there is no model to try.
    """
    config, console = run.config, run.console
    run.begin(name="doctor", started=run.folder / "doctor.json")
    with console.status(f"looking at {config.model.label}") as status:
        found = list(Checkup(config, status.update).findings())
    if len(found) == 1 and not found[0].works:  # its configuration could not be read
        raise UserError(found[0].reason)
    console.print(table_of(found))
    works = sum(each.works for each in found)
    console.print(f"{works} of {len(found)} work for {config.model.label} on this machine")
    result = {
        "task": "doctor",
        "model": config.model.label,
        "works": works,
        "tried": len(found),
        "findings": [asdict(each) for each in found],
    }
    write_json_atomic(run.folder / "doctor.json", result)
    run.log({name: value for name, value in result.items() if name != "findings"})


def how_to_ask(overrides: Sequence[str]) -> str:
    """Return the words that point to this task, for the message of a run that was refused.

    Args:
        overrides: what was typed for that run.
    """
    same = [each for each in overrides if each.startswith(("model=", "model.", "hardware="))]
    return f"{' '.join(['task=doctor', *same])} shows what works"


def table_of(found: Sequence[Finding]) -> Table:
    """Return the table of all findings, one line each, in the order in which they were found."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name, fold in (("part", None), ("choice", 40), ("works", None), ("what to know", None)):
        table.add_column(name, max_width=fold, overflow="fold")
    last = ""
    for each in found:
        verdict = Text("yes", "green") if each.works else Text("no", "red")
        table.add_row(each.part if each.part != last else "", each.choice, verdict, Text(printable(each.reason)))
        last = each.part
    return table
