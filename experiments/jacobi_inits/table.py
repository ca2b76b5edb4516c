"""Print the table of this study:  python experiments/jacobi_inits/table.py RUN_DIR [RUN_DIR ...]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

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


def main() -> None:
    """One row a folder."""
    print(HEADER)
    print("|" + "---|" * HEADER.count(" | ") + "---|")
    for folder in map(Path, sys.argv[1:]):
        print(row(folder.name, json.loads((folder / "result.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
