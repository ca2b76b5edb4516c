"""Make a W&B workspace for SelfDraft's runs:  python scripts/wandb_dashboard.py [--project selfdraft] [--dry-run]

It shows speedups by drafter and by family, acceptance by position, tokens per forward against what a step costs, where
the time goes, and training curves. Runs need not be there yet. `--dry-run` prints what would be sent, as JSON, and
needs neither a network nor an account. Needs `pip install wandb-workspaces`.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

NAME = "SelfDraft"


@one_line_script("wandb_dashboard")
def main(arguments: list[str]) -> None:
    """Save the workspace and print its address, or print what would be sent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="selfdraft", help="W&B's project (default: selfdraft)")
    parser.add_argument("--entity", help="account or team (default: your own)")
    parser.add_argument("--name", default=NAME, help=f"of the workspace (default: {NAME})")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be sent")
    given = parser.parse_args(arguments)
    if not given.project.strip() or not given.name.strip():
        raise UserError("--project and --name: give a name")
    try:
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise UserError(f"this script needs a package ({error.name}): pip install wandb-workspaces") from None
    entity = given.entity or ("your-account" if given.dry_run else _own_account())
    workspace = ws.Workspace(name=given.name, entity=entity, project=given.project, sections=sections())
    if given.dry_run:
        print(json.dumps(workspace._spec, indent=2))
        return
    try:
        workspace.save()
    except Exception as error:  # of W&B, of its server, or of the network
        raise UserError(f"W&B did not take it ({one_line(error)}): run `wandb login`, or check --entity") from error
    print(workspace.url)


def sections() -> list[ws.Section]:
    """Return the sections of the workspace: what was reached, why, how it went, and trainings."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def by_drafter(title: str, *metrics: str) -> Any:
        return wr.BarPlot(title=title, metrics=list(metrics), groupby="config.label", orientation="h")

    def over(title: str, axis: str, *metrics: str) -> Any:
        return wr.LinePlot(title=title, x=axis, y=list(metrics), smoothing_type="none")

    cost = wr.ScatterPlot(
        title="tokens per forward against the cost of a step in plain steps: it pays above the diagonal",
        x="step_cost",
        y="tokens_per_forward",
        z="speedup_total",
    )
    reached = [
        by_drafter("speedup over all tokens", "speedup_total"),
        by_drafter("its interval", "speedup_total_interval/low", "speedup_total_interval/high"),
        wr.MediaBrowser(title="speedup by family, and acceptance by depth", media_keys=["picture"]),
        by_drafter("certificates", "lossless/exact", "lossless/tie", "lossless/mismatch"),
    ]
    why = [
        over("acceptance by position", "depth", "acceptance_by_depth"),
        cost,
        by_drafter("where the time goes", "phase/draft", "phase/verify", "phase/rest"),
        by_drafter("tokens of a step", "acceptance_length/mean"),
    ]
    running = [
        over("speedup so far", "turn", "running/speedup", "running/speedup_low", "running/speedup_high"),
        over("tokens per second so far", "turn", "running/tokens_per_s"),
        over("acceptance so far", "turn", "running/acceptance"),
        over("peak memory, MB", "turn", "peak_memory_mb"),
    ]
    training = [
        over("loss", "trainer/global_step", "loss"),
        over("accepted tokens expected of held-out texts", "trainer/global_step", "expected_accepted"),
    ]
    named = {"what is gained": reached, "why": why, "how it goes": running, "training": training}
    return [ws.Section(name=name, panels=panels, is_open=True) for name, panels in named.items()]


def _own_account() -> str:
    """Return the account of the user who is logged in.

    Raises:
        UserError: nobody is.
    """
    import wandb

    try:
        account = wandb.Api().default_entity
    except Exception as error:
        raise UserError(f"W&B does not know you ({one_line(error)}): run `wandb login`, or use --dry-run") from error
    if not account:
        raise UserError("W&B names no account: give --entity")
    return account


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
