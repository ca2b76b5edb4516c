"""Print the table of this study:  python experiments/jacobi_inits/table.py RUN_DIR [RUN_DIR ...]"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.tracking.files.result_file import markdown, taken_from

HEADER = (
    "| run | tokens per forward | speedup [95 % CI] | fixed a pass | passes with a token right early | passes a block "
    "| exact / tie / mismatch |"
)


def mean(histogram: list[int]) -> str:
    """Of the values that a histogram counts."""
    total = sum(histogram)
    return f"{sum(value * count for value, count in enumerate(histogram)) / total:.2f}" if total else "–"


def row(name: str, result: dict) -> str:
    """One run."""
    told, speedup, lossless = result["diagnostics"], result["speedup"], result["lossless"]
    early = told.get("right_before_their_turn_per_pass", [])
    cells = [
        name,
        f"{result['tokens_per_forward']:.2f}",
        f"{speedup['median']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]",
        mean(told.get("tokens_fixed_per_pass", [])),
        f"{100 * (1 - early[0] / sum(early)):.0f} %" if early else "–",
        mean(told.get("passes_per_block", [])),
        f"{lossless['exact']} / {lossless['tie']} / {lossless['mismatch']}",
    ]
    return "| " + " | ".join(cells) + " |"


@one_line_script("table")
def main(arguments: list[str]) -> None:
    """Print one row for each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="folder of a finished run")
    runs = parser.parse_args(arguments).runs
    rows = [taken_from(folder, partial(row, folder.name)) for folder in runs]
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
