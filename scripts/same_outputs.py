"""Count equal outputs of two runs of the same prompts:  python scripts/same_outputs.py RUN_DIR RUN_DIR

In float32 a batch must give the outputs of single prompts: compare a run with decoding.batch_size=8 and one with 1.
The exit status is 1 if any output differs, or is in only one of the runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from selfdraft.app.terminal.errors import one_line_errors
from selfdraft.core.certificate import first_divergence
from selfdraft.core.errors import UserError
from selfdraft.tracking.files.records import key
from selfdraft.tracking.numbers.lines import read_measured

Outputs = dict[tuple[str, int], dict]


def outputs_of(folder: Path) -> Outputs:
    """Return the lines of a run's prompts.jsonl by (id, turn).

    Raises:
        UserError: there are none.
    """
    lines = {key(line): line for line in read_measured(folder)}
    if not lines:
        raise UserError(f"{folder} holds no finished prompts: give the folders of two runs (hydra.run.dir)")
    return lines


def baseline(line: dict) -> list[int]:
    """Return the token ids that plain decoding wrote."""
    return line.get("baseline_output_ids", line["output_ids"])


def compare(one: Outputs, other: Outputs) -> int:
    """Print differences, and how many outputs of drafter and baseline are equal. Return 1 if any differs, else 0."""
    common = [found for found in one if found in other]
    same = same_alone = 0
    for found in common:
        index = first_divergence(one[found]["output_ids"], other[found]["output_ids"])
        same += index is None
        same_alone += baseline(one[found]) == baseline(other[found])
        if index is not None:
            asked = "" if one[found]["prompt_ids"] == other[found]["prompt_ids"] else " (their prompts differ, too)"
            print(f"{found[0]}, turn {found[1] + 1}: parts at token {index}{asked}")
    missing = len(one.keys() ^ other.keys())
    print(f"{same} of {len(common)} outputs are equal, token for token; of plain decoding {same_alone}")
    if missing:
        print(f"{missing} turns are in one of the runs only")
    return int(same < len(common) or same_alone < len(common) or missing > 0)


def main(arguments: list[str]) -> int:
    """Compare the runs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN_DIR", help="folder of a run")
    given = parser.parse_args(arguments)
    with one_line_errors():
        return compare(*map(outputs_of, given.runs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
