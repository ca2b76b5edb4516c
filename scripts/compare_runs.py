"""Print a Markdown table of finished runs:  python scripts/compare_runs.py RUN_DIR [RUN_DIR ...]

This makes the tables of docs/results.md, so that every number in them comes from a result.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from selfdraft.app.errors import one_line_script
from selfdraft.tracking.result_file import markdown, taken_from

HEADER = (
    "| drafter | dtype | prompts | tokens per forward | tokens/s | speedup: median [95 % CI] | over all tokens "
    "| exact / tie / mismatch | `transformers` greedy | its prompt lookup |"
)


def row(result: dict) -> str:
    """Return one run as a table row. The last two columns are speedups over a reference, medians over turns."""
    speedup, lossless = result["speedup"], result["lossless"]
    references = (result["references"].get(name) for name in ("transformers_greedy", "transformers_prompt_lookup"))
    cells = [
        result["drafter"],
        result["dtype"],
        f"{result['prompts']} ({result['turns']} turns)",
        f"{result['tokens_per_forward']:.2f}",
        f"{result['decode_tokens_per_s']:.1f} ({result['baseline_tokens_per_s']:.1f} alone)",
        f"{speedup['median']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]",
        f"{result['speedup_total']:.2f}",
        f"{lossless['exact']} / {lossless['tie']} / {lossless['mismatch']}",
    ]
    for reference in references:
        if reference is None:
            cells.append("–")
            continue
        ours, alone = reference["speedup_of_drafter"]["median"], reference["baseline_vs_reference"]["median"]
        cells.append(f"{ours:.2f} × ({alone:.2f} × alone)")
    return "| " + " | ".join(cells) + " |"


@one_line_script("compare_runs")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="folder of a finished run")
    rows = [taken_from(folder, row) for folder in parser.parse_args(arguments).runs]
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
