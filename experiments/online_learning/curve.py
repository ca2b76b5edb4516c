"""Acceptance over a stream of prompts, learning on against off: curve.png and a table.

    python experiments/online_learning/curve.py LEARNING FIXED

Both are folders of task=evaluate on the same prompts in the same order. Rates are sums over prompts; the difference is
paired by prompt, and its standard error that of a ratio over prompts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.tracking.files.records import PROMPTS, RecordFile, record_path

HERE = Path(__file__).parent
WINDOW = 10  # prompts of a moving mean
Counts = NDArray[np.float64]  # (P, 2): first drafted tokens offered and accepted, prompt after prompt


def counts_of(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Return the first drafted tokens offered and accepted, by prompt and turn, in the order of the stream."""
    lines = RecordFile(record_path(folder, name=PROMPTS)).read()
    if not lines:
        raise UserError(f"{folder} has no prompts: give the folder of task=evaluate")
    found = {}
    for line in lines:
        first = (line.get("acceptance_by_depth") or [{"offered": 0, "accepted": 0}])[0]
        found[str(line["id"]), int(line["turn"])] = [first["offered"], first["accepted"]]
    return found


def rate(counts: Counts) -> float:
    """Return accepted / offered."""
    return counts[:, 1].sum() / max(counts[:, 0].sum(), 1)


def shares(counts: Counts) -> NDArray[np.float64]:
    """Return each prompt's share of the rate's error."""
    return (counts[:, 1] - rate(counts) * counts[:, 0]) / counts[:, 0].sum()


@one_line_script("curve")
def main(arguments: list[str]) -> None:
    """Write curve.png and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs=2, type=Path, metavar="RUN_DIR", help="folders of task=evaluate: learning, then not"
    )
    runs = [counts_of(folder) for folder in parser.parse_args(arguments).runs]
    turns = [turn for turn in runs[0] if turn in runs[1]]
    learning, fixed = (np.array([run[turn] for turn in turns], dtype=float) for run in runs)
    print("| turns | learning | fixed | difference |\n|---|---|---|---|")
    half = len(turns) // 2
    for name, part in (("first half", slice(0, half)), ("second half", slice(half, None)), ("all", slice(None))):
        ours, theirs = learning[part], fixed[part]
        each = shares(ours) - shares(theirs)
        spread = float(np.sqrt(np.square(each).sum() * len(each) / max(len(each) - 1, 1)))
        print(f"| {name} | {rate(ours):.3f} | {rate(theirs):.3f} | {rate(ours) - rate(theirs):+.3f} ± {spread:.3f} |")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, counts, colour in (("learning", learning, "#e08a2e"), ("fixed weights", fixed, "#777777")):
        means = [rate(counts[max(at - WINDOW + 1, 0) : at + 1]) for at in range(len(turns))]
        axes.plot(range(1, len(turns) + 1), means, color=colour, label=f"{name}, last {WINDOW} turns")
    axes.set_xlabel("turn of the stream")
    axes.set_ylabel("acceptance of the first drafted token")
    axes.set_ylim(bottom=0.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(HERE / "curve.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
