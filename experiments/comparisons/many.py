"""Compare what a comparison of six contenders measures of two of them with an evaluation of these two.

    python experiments/comparisons/many.py [--per-category 1] [--tokens 48]

An evaluation, the comparison and a second evaluation run one after the other, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError

RUN = Path(__file__).parents[2] / "run.py"
DRAFTER = "jacobi"
CONTENDERS = ["none", DRAFTER, "pool", "suffix", "prompt_lookup", "recycling"]


class Seconds(NamedTuple):
    """Seconds of one run: of the whole per contender, and of decoding by plain decoding and by the drafter."""

    each: float
    plain: float
    drafter: float


@one_line_script("many")
def main(arguments: list[str]) -> None:
    """Print a line for each run, and the ratios of the comparison's seconds to those of the evaluations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-category", type=int, default=1, help="prompts of each bundled category (default: 1)")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens, at most (default: 48)")
    given = parser.parse_args(arguments)
    if min(given.per_category, given.tokens) < 1:
        raise UserError("--per-category and --tokens: at least 1")
    shared = ["logger=none", f"dataset.per_category={given.per_category}", f"decoding.max_new_tokens={given.tokens}"]
    two = [*shared, "task=evaluate", f"drafter={DRAFTER}"]
    six = [*shared, "task=compare", f"task.contenders=[{','.join(CONTENDERS)}]"]
    console = Console()
    console.print("| run | s per contender, in all | s of decoding, none | s of decoding, jacobi |\n|---|---|---|---|")
    found = []
    for name, options, contenders in (("two", two, 2), ("six", six, len(CONTENDERS)), ("two again", two, 2)):
        seconds = timed(options, contenders)
        console.print(f"| {name} | {seconds.each:.1f} | {seconds.plain:.2f} | {seconds.drafter:.2f} |")
        found.append(seconds)
    before, comparison, after = found
    ratios = [2 * c / (a + b) for a, c, b in zip(before, comparison, after, strict=True)]
    console.print(f"| six / mean of two | {' | '.join(f'{ratio:.3f}' for ratio in ratios)} |")


def timed(options: list[str], contenders: int) -> Seconds:
    """Run a task, and return its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(RUN), *options, f"hydra.run.dir={folder}/run"], capture_output=True, text=True
        )
        whole = time.perf_counter() - begun
        if done.returncode:
            raise UserError(f"run.py ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "prompts.jsonl").read_text().splitlines()]
    if "contenders" in lines[0]:
        plain, drafter = (sum(line["contenders"][name]["decode_s"] for line in lines) for name in ("none", DRAFTER))
    else:
        plain, drafter = (sum(line[key] for line in lines) for key in ("baseline_decode_s", "decode_s"))
    return Seconds(whole / contenders, plain, drafter)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
