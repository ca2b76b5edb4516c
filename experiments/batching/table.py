"""Print a Markdown table of runs at several batch sizes:  python experiments/batching/table.py RUN_DIR [RUN_DIR ...]

One row a run, by dtype, drafter and batch size; `× batch 1` is against the run of the same dtype and drafter there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.tracking.files.result_file import markdown, taken_from

HEADER = (
    "| dtype | drafter | batch | tokens/s | × batch 1 | plain, tokens/s | speedup "
    "| latency: median, p95 (s) | plain latency (s) | exact / tie / mismatch |"
)


def kind(result: dict) -> tuple[str, str]:
    """What stays the same from batch size to batch size."""
    return result["dtype"], result["drafter"]


def row(result: dict, single: dict | None) -> str:
    """One run as a table row."""
    rates, latency, lossless = result["throughput"], result["latency_s"], result["lossless"]
    gain = "–" if single is None else f"{rates['drafter'] / single['throughput']['drafter']:.2f}"
    cells = [
        *kind(result),
        str(result["batch_size"]),
        f"{rates['drafter']:.1f}",
        gain,
        f"{rates['baseline']:.1f}",
        f"{result['speedup_total']:.2f}",
        *(f"{latency[whose]['median']:.2f}, {latency[whose]['p95']:.2f}" for whose in ("drafter", "baseline")),
        f"{lossless['exact']} / {lossless['tie']} / {lossless['mismatch']}",
    ]
    return "| " + " | ".join(cells) + " |"


def complete(result: dict) -> dict:
    """Return the result, which must have all that a row shows."""
    row(result, result)
    return result


@one_line_script("table")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="folder of a finished run")
    results = [taken_from(folder, complete) for folder in parser.parse_args(arguments).runs]
    singles = {kind(result): result for result in results if result["batch_size"] == 1}
    rows = [
        row(result, singles.get(kind(result)))
        for result in sorted(results, key=lambda result: (*kind(result), result["batch_size"]))
    ]
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
