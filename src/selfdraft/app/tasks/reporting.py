"""The page at the end of a run, and task=report, which makes one of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfdraft.app.options.schema_tasks import ReportConfig
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import shown
from selfdraft.core.errors import UserError
from selfdraft.core.messages import harmless
from selfdraft.core.paths import expanded
from selfdraft.models.loading.spelling import Speller
from selfdraft.modules.bench import Bench
from selfdraft.modules.viewing import write_sample
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.records import Line
from selfdraft.tracking.numbers.spec_bench import rows_of_others, write_answers
from selfdraft.tracking.report.page import REPORT, write_report
from selfdraft.tracking.report.runs import MEASURED, folders_of, read_runs

SPEC_BENCH = "spec_bench"  # the folder of answers in Spec-Bench's form


def report_of_run(run: Run, bench: Bench, lines: Sequence[Line]) -> None:
    """Write report.html into the folder of a run whose result is written. A failure is a warning."""
    with harmless(f"{REPORT} was not written"):
        write_sample(run.folder, bench.certifier, Speller(bench.chat.tokenizer), lines)
        write_report(run.folder / REPORT, [run.folder])
        run.console.print(f"report: {shown(run.folder / REPORT)}")


def report(run: Run) -> None:
    """Write one page about all runs that `task.runs` names.

    Raises:
        UserError: there are none, none has a result, or a file of Spec-Bench cannot be read.
    """
    task = run.config.task
    assert isinstance(task, ReportConfig)
    if not task.runs:
        raise UserError("task.runs: give folders of runs or patterns of them, e.g. 'task.runs=[outputs/*]'")
    found = [folder for pattern in task.runs for folder in folders_of(str(expanded(pattern, "task.runs")))]
    folders = [folder for folder in dict.fromkeys(found) if folder.resolve() != run.folder.resolve()]
    plain = None if task.others_plain is None else expanded(task.others_plain, "task.others_plain")
    others = rows_of_others([expanded(path, "task.others") for path in task.others], plain)
    run.begin(name="report")
    if not run.is_rank_zero:
        return
    write_report(run.folder / REPORT, folders, others)
    write_json_atomic(run.folder / "result.json", {"task": "report", "runs": [str(folder) for folder in folders]})
    run.console.print(f"report of {len(folders)} runs: {shown(run.folder / REPORT)}")
    if task.spec_bench:
        _write_spec_bench(run, folders)


def _write_spec_bench(run: Run, folders: Sequence[Path]) -> None:
    """Write the answers of all runs in Spec-Bench's form, a folder for each run."""
    for each in read_runs(folders)[0]:
        if each.task in MEASURED and each.lines:
            drafter = str(each.result.get("drafter", ""))
            name = each.name.replace("/", "_")
            paths = write_answers(
                run.folder / SPEC_BENCH / name, each.lines, model=each.result["model"], drafter=drafter
            )
            for path in paths:
                run.console.print(f"answers: {shown(path)}")
