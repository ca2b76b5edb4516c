"""Compare evaluations of the same prompts by one process and by several: throughput, and whether the texts are equal.

The throughput is what all processes wrote in the time of the slowest:

    python experiments/replicas/replicas.py ONE_PROCESS_RUN SEVERAL_PROCESSES_RUN
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.tracking.files.records import RecordFile, record_path


def throughput(lines: list[dict]) -> tuple[float, dict[int, int]]:
    """Return tokens per second of all processes, plain decoding and prefill included, and prompts of every process."""
    seconds: dict[int, float] = defaultdict(float)
    for line in lines:
        seconds[line["rank"]] += line["latency_s"] + line["baseline_latency_s"]
    tokens = sum(2 * line["new_tokens"] for line in lines)  # the drafter and plain decoding write the same ones
    return tokens / max(seconds.values()), dict(Counter(line["rank"] for line in lines))


@one_line_script("replicas")
def main(arguments: list[str]) -> None:
    """Print a line for each run, and the gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, help="folders of finished evaluations")
    folders = parser.parse_args(arguments).runs
    runs = [list(RecordFile(record_path(folder)).read()) for folder in folders]
    for folder, lines in zip(folders, runs, strict=True):
        if not lines:
            raise UserError(f"{folder} has no finished prompts: give the folder of an evaluation")
        speed, shares = throughput(lines)
        print(f"{folder.name}: {speed:.1f} tokens/s, turns by process {shares}")
    texts = [{(line["id"], line["turn"]): line["output_ids"] for line in lines} for lines in runs]
    print(f"gain {throughput(runs[1])[0] / throughput(runs[0])[0]:.2f}x, texts equal: {texts[0] == texts[1]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
