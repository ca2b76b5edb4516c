"""Calculate the speed of guarded drafters, by family.

    python experiments/guard_and_cascade/guard_cost.py RUN [RUN ...] --hardware FILE

If the speed of a machine drifts by more than a guard may lose, timing runs against plain decoding cannot show the loss.
So this adds up the differences between guarded steps (decoding.guard=true) and plain ones: the time of the drafter
itself, as a share of the same run's forwards, and verifications of more than one token. These are priced by FILE, a
profile.json of task=profile or a file of experiments/costs. The rest of a step is the same with and without a drafter,
and is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.costmodel import CostModel
from selfdraft.core.errors import UserError
from selfdraft.tracking.numbers.lines import read_measured, refuse_without_steps


def speed(lines: list[dict], costs: CostModel) -> float:
    """Return the speed as a multiple of plain decoding's, over all `lines` (of prompts.jsonl) together."""
    tokens, seconds = 0, 0.0
    for line in lines:
        verifying = sum(costs.forward(len(drafted) + 1) for drafted, *_ in line["steps"])
        if verifying:  # an answer of one token has no steps
            seconds += verifying * (1 + line["phases_s"]["draft"] / line["phases_s"]["verify"])
        tokens += line["new_tokens"]
    return tokens * costs.forward(1) / seconds if seconds else 1.0


def read_lines(folder: Path) -> list[dict]:
    """Return the lines of a guarded run.

    Raises:
        UserError: the run was not guarded, or its lines are damaged.
    """
    lines = read_measured(folder)
    refuse_without_steps(lines, folder)
    if not any(line.get("stood_down") for line in lines):
        raise UserError(f"{folder}: the guard never paused drafting; give the folder of a run with decoding.guard=true")
    return lines


def row(name: str, lines: list[dict], costs: CostModel) -> str:
    """Return a line of the table."""
    paused, steps = sum(line.get("stood_down", 0) for line in lines), sum(len(line["steps"]) for line in lines)
    families = dict.fromkeys(line["family"] for line in lines)
    by_family = [speed([line for line in lines if line["family"] == family], costs) for family in families]
    columns = " | ".join(f"{value:.3f}" for value in (*by_family, speed(lines, costs)))
    return f"| {name} | {paused:,} of {steps:,} | {columns} |"


@one_line_script("guard_cost")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run with decoding.guard=true")
    parser.add_argument("--hardware", type=Path, required=True, metavar="FILE", help="costs of forwards")
    given = parser.parse_args(arguments)
    try:
        costs = CostModel.from_dict(json.loads(given.hardware.read_text(encoding="utf-8")), str(given.hardware))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--hardware {given.hardware} cannot be read: {error}") from None
    found = [(folder.name, read_lines(folder)) for folder in given.runs]
    families = list(dict.fromkeys(line["family"] for line in found[0][1]))
    for name, lines in found:
        if list(dict.fromkeys(line["family"] for line in lines)) != families:
            raise UserError(f"{name}: not the families of {found[0][0]}; give runs over the same prompts")
    print("| run | paused | " + " | ".join(families) + " | all |\n" + "|---" * (len(families) + 3) + "|")
    for name, lines in found:
        print(row(name, lines, costs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
