"""The table of variants.py: acceptance at each depth, with standard errors over texts.

    python experiments/fused_jacobi/table.py OUT

A rate is a ratio of sums over texts, so its error is that of a ratio: the spread of (accepted - rate * offered). The
difference from `base` is paired: both variants predicted the same texts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError

Parts = tuple[float, NDArray[np.float64]]  # a rate, and each text's share of its error


def parts(counts: list[list[list[int]]], depth: int) -> Parts:
    """Return the rate at a depth, from (T, K, 2) tokens offered and accepted of each text."""
    offered, accepted = np.array(counts, dtype=float)[:, depth].T
    if not offered.sum():
        return 0.0, np.zeros(len(offered))
    rate = accepted.sum() / offered.sum()
    return rate, (accepted - rate * offered) / offered.sum()


def error(shares: NDArray[np.float64]) -> float:
    """Return the standard error that the texts' shares make."""
    return float(np.sqrt(np.square(shares).sum() * len(shares) / (len(shares) - 1)))


def shown(counts: list[list[list[int]]], depth: int) -> str:
    """Return a rate and its error in per cent."""
    rate, shares = parts(counts, depth)
    return f"{100 * rate:.1f} ± {100 * error(shares):.1f}"


def difference(counts: list[list[list[int]]], other: list[list[list[int]]], depth: int = 0) -> str:
    """Return the paired difference of two rates and its error in per cent."""
    (rate, shares), (base, base_shares) = parts(counts, depth), parts(other, depth)
    return f"{100 * (rate - base):+.1f} ± {100 * error(shares - base_shares):.1f}"


@one_line_script("table")
def main(arguments: list[str]) -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder that variants.py was given")
    file = parser.parse_args(arguments).out / "variants.jsonl"
    if not file.exists():
        raise UserError(f"{file} does not exist: give the folder that variants.py was given")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    base = next((line for line in lines if line["variant"] == "base"), lines[0])
    depths = range(len(base["masks"][0]))
    rates = " | ".join(["first token", *(f"token {depth + 1}" for depth in depths if depth)])
    print(f"| variant | seconds | million weights | {rates} | first token, against base | fed - unfed |")
    print("|" + "---|" * (5 + len(depths)))
    for line in lines:
        masks = [shown(line["masks"], depth) for depth in depths]
        cells = [
            line["variant"],
            f"{line['seconds']:.0f}",
            f"{line['parameters'] / 1e6:.2f}",
            *masks,
            "–" if line is base else difference(line["masks"], base["masks"]),
            difference(line["fed"], line["unfed"]),
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
