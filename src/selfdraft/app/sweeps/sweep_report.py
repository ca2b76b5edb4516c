"""The page at the end of a sweep. What it needs is imported only then, because every run imports the launcher."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def report_of_sweep(folder: Path) -> None:
    """Write report.html into a sweep's folder, and print where it is and how to look at its jobs in W&B.

    There is no page if no job has a result to show. A failure is a warning.
    """
    from selfdraft.core.errors import UserError
    from selfdraft.core.messages import harmless
    from selfdraft.tracking.dashboards.wandb_commands import how_to_look_at_all
    from selfdraft.tracking.report.page import REPORT, write_report
    from selfdraft.tracking.report.runs import folders_of

    with harmless(f"{REPORT} was not written"), suppress(UserError):  # UserError: there is nothing to show
        write_report(folder / REPORT, folders_of(str(folder)))
        print(f"report: {folder / REPORT}")
    if look := how_to_look_at_all(folder):
        print(look)
