"""Write the folder of a task=finetune run again, with its matrices rounded to 8 bits; 32 inputs share a scale.

model.engine=native then reads a quarter of the bytes:  python experiments/jump/rounded.py RUN_DIR NEW_DIR
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.models.trained.adapter import Adapter
from selfdraft.tracking.files.artifact import ADAPTER, FILE, Artifact


@one_line_script("rounded")
def main(arguments: list[str]) -> None:
    """Read the artifact and weights of a run; write them to the new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of the run")
    parser.add_argument("out", type=Path, metavar="NEW_DIR", help="folder to write")
    given = parser.parse_args(arguments)
    artifact, adapter = Artifact.read(given.run), Adapter.read(given.run, "RUN_DIR")
    adapter.write(given.out, eight_bit=True)
    replace(artifact, options={**artifact.options, ADAPTER: "."}).write(given.out / FILE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
