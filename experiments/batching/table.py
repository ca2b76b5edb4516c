"""Print a Markdown table of runs at several batch sizes:  python experiments/batching/table.py RUN_DIR [RUN_DIR ...]

One row a run, by dtype, drafter and batch size; `× batch 1` is against the run of the same dtype and drafter there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEADER = (
    "| dtype | drafter | batch | tokens/s | × batch 1 | the target alone | speedup over it "
    "| latency: median, p95 (s) | alone (s) | exact / tie / mismatch |"
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


def main(folders: list[str]) -> int:
    """Print the table; 2 where a run is not finished."""
    if not folders:
        print(__doc__, file=sys.stderr)
        return 2
    results = []
    for path in (Path(folder) / "result.json" for folder in folders):
        if not path.is_file():
            print(f"{path} is not there: give the folders of finished runs (hydra.run.dir)", file=sys.stderr)
            return 2
        results.append(json.loads(path.read_text(encoding="utf-8")))
    singles = {kind(result): result for result in results if result["batch_size"] == 1}
    print(HEADER)
    print("|" + "---|" * HEADER.count(" | ") + "---|")
    for result in sorted(results, key=lambda result: (*kind(result), result["batch_size"])):
        print(row(result, singles.get(kind(result))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
