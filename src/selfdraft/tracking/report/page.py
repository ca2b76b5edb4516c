"""Write the report: what `rows`, `charts` and `decode` return, in the templates of page/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from selfdraft import __version__
from selfdraft.core.errors import UserError
from selfdraft.core.messages import printable
from selfdraft.tracking.display.table import number
from selfdraft.tracking.files.atomic import write_bytes_atomic
from selfdraft.tracking.numbers.spec_bench import rows_of_ours
from selfdraft.tracking.numbers.summary import FEW_OFFERS
from selfdraft.tracking.report import charts
from selfdraft.tracking.report.decode import viewed
from selfdraft.tracking.report.rows import Row, acceptance_of, families_of, rows_of, speedup_of
from selfdraft.tracking.report.runs import TRAINED, RunFiles, Unread, read_runs

REPORT = "report.html"
FAMILY_BARS = 5  # contenders in the chart by family; the table beside it has all
WHY_SHOWN = 5  # reasons that are shown at once; the others can be unfolded
DEPTHS = 16  # in the table of acceptance
# What a file that was edited, or written by something else, can raise.
DAMAGED = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
WATCHED = "expected_accepted"  # what fine-tuning maximises


def write_report(path: Path, folders: Sequence[Path], others: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write one page about the runs in these folders.

    Args:
        path: of the page. others: results of other programs, see `spec_bench.rows_of_others`.

    Raises:
        UserError: no folder has a result to show.
    """
    runs, unread = read_runs(folders)
    try:
        page = page_of(runs, unread, others)
    except DAMAGED:
        damaged = [Unread(run.name, "its result.json is damaged") for run in runs if not _can_be_shown(run)]
        names = {each.name for each in damaged}
        runs, unread = [run for run in runs if run.name not in names], [*unread, *damaged]
        page = page_of(runs, unread, others)
    if not runs:
        told = f": {unread[0].name}: {unread[0].reason}" if unread else ": none of these folders is of a task with one"
        raise UserError(f"there is no result to show{told}")
    write_bytes_atomic(path, page.encode("utf-8", "backslashreplace"))


def _can_be_shown(run: RunFiles) -> bool:
    try:
        return bool(page_of([run]))
    except DAMAGED:
        return False


def page_of(runs: Sequence[RunFiles], unread: Sequence[Unread] = (), others: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the page."""
    rows = rows_of(runs)
    drafted = [row for row in rows if not row.is_plain]
    environment = Environment(
        loader=PackageLoader("selfdraft.tracking.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": number, "safe_text": lambda text: printable(str(text))}
    environment.globals |= {"speedup_of": speedup_of, "acceptance_of": acceptance_of}
    board, one = charts.bars([row.speedup for row in rows])
    source = environment.loader
    assert isinstance(source, PackageLoader)
    return environment.get_template("report.html").render(
        title=_title(rows, runs),
        version=__version__,
        rows=rows,
        board=list(zip(rows, board, strict=True)),
        one=one,
        shown=_differing(rows),
        families=families_of(rows),
        by_family=_by_family(drafted[:FAMILY_BARS], families_of(rows)),
        acceptance=charts.acceptance(drafted),
        deepest=min(max((len(acceptance_of(row.measures)) for row in drafted), default=0), DEPTHS),
        scatter=charts.scatter(drafted),
        phases=charts.phases(rows),
        training=[
            (run, charts.training(run.result["history"], WATCHED), WATCHED) for run in runs if run.task == TRAINED
        ],
        others=[*_ours(runs, rows), *others] if others else [],
        runs=runs,
        unread=unread,
        viewer=viewed(runs, rows),
        few=FEW_OFFERS,
        series=charts.SERIES,
        family_bars=FAMILY_BARS,
        why_shown=WHY_SHOWN,
        size=(charts.WIDTH, charts.HEIGHT, charts.LEFT, charts.RIGHT, charts.TOP, charts.BOTTOM),
        style=_own(source, environment, "style.css"),
        script=_own(source, environment, "viewer.js"),
    )


def _own(source: PackageLoader, environment: Environment, name: str) -> Markup:
    """Return a file of ours as it is: style and script hold nothing from outside."""
    return Markup(source.get_source(environment, name)[0])


def _title(rows: Sequence[Row], runs: Sequence[RunFiles]) -> str:
    """Return what the page is about: model and dataset if all runs share them, else the number of runs."""
    shared = {(row.result.get("model"), row.result.get("dataset")) for row in rows}
    if len(shared) == 1:
        return " · ".join(str(each) for each in shared.pop())
    return f"{len(runs)} runs" if rows else "training"


def _differing(rows: Sequence[Row]) -> list[str]:
    """Return the facts in which the runs differ, which are columns of the leaderboard."""
    facts = ("model", "dataset", "dtype", "engine", "batch_size", "max_new_tokens")
    return [fact for fact in facts if len({str(row.result.get(fact)) for row in rows}) > 1]


def _ours(runs: Sequence[RunFiles], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return our drafters as `spec_bench.rows_of_others` returns those of others; without runs whose lines are lost."""
    found = {
        (run.name, name): measured
        for run in runs
        for name, measured in rows_of_ours(run.lines, str(run.result.get("drafter"))).items()
    }
    return [
        {**found[row.run, row.contender], "name": row.label, "source": "this report"}
        for row in rows
        if not row.is_plain and (row.run, row.contender) in found
    ]


FamilyBars = tuple[str, list[tuple[Row, Any, charts.Bar]], float]


def _by_family(rows: Sequence[Row], families: Sequence[str]) -> list[FamilyBars]:
    """Return the speedups and bars of the best rows for each family, all on one scale, and the place of 1 on it."""
    found = [
        (family, row, speedup_of(row.measures["by_category"][family]))
        for family in families
        for row in rows
        if family in row.measures["by_category"]
    ]
    drawn, one = charts.bars([speedup for _, _, speedup in found])
    placed = list(zip(found, drawn, strict=True))
    return [
        (family, [(row, speedup, bar) for (own, row, speedup), bar in placed if own == family], one)
        for family in families
    ]
