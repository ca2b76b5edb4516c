"""The page at the end of a sweep. What it needs is imported only then, because every run imports the launcher."""

from __future__ import annotations

from pathlib import Path


def report_of_sweep(folder: Path) -> None:
    """Write report.html into a sweep's folder, if any of its jobs has a result to show. A failure is a warning."""
    from selfdraft.core.messages import harmless
    from selfdraft.tracking.report.page import REPORT, write_report
    from selfdraft.tracking.report.runs import folders_of, read_runs

    with harmless(f"{REPORT} was not written"):
        folders = folders_of(str(folder))
        if read_runs(folders)[0]:
            write_report(folder / REPORT, folders)
            print(f"report: {folder / REPORT}")
