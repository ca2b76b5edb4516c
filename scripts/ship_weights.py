"""Put the weights of a run of task=finetune, in 8 bits, among those that come with SelfDraft.

    python scripts/ship_weights.py RUN_DIR jump --command "experiments/jump/build.sh PROMPTS"

The folder src/selfdraft/shipped/<path> then has `adapter.safetensors` and `about.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.models.trained.adapter import FILE, Adapter
from selfdraft.models.trained.shipped import ABOUT, FOLDER
from selfdraft.tracking.files.artifact import Artifact
from selfdraft.tracking.files.atomic import write_text_atomic
from selfdraft.tracking.files.plain import read_plain_yaml

LIMIT = 8 << 20  # bytes of all weights that come with SelfDraft
SETTINGS = ("copies", "block", "vocabulary", "batch_size", "length", "learning_rate", "steps", "minutes")


@one_line_script("ship_weights")
def main(arguments: list[str]) -> None:
    """Write the folder.

    Raises:
        UserError: the weights are too large.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of the run")
    parser.add_argument("path", help="the path that uses the weights, e.g. jump")
    parser.add_argument("--command", required=True, help="the command that rebuilds them")
    parser.add_argument("--data", default="", help="what the texts are that they were trained on")
    given = parser.parse_args(arguments)
    size = ship(given.run, given.path, {"data": given.data, "command": given.command})
    if size > LIMIT:
        raise UserError(f"{size:,} bytes of weights: at most {LIMIT:,} may come with SelfDraft")
    print(f"{FOLDER / given.path}: {size / 1e6:.2f} MB in all")


def ship(run: Path, path: str, more: dict[str, str]) -> int:
    """Put a run's weights among those that come with SelfDraft; return the bytes of all of them.

    Args:
        more: what the run's folder does not say: the data, and the command.

    Raises:
        UserError: the folder is not that of a run of task=finetune.
    """
    artifact, adapter = Artifact.read(run), Adapter.read(run, "RUN_DIR")
    config, objective = read_plain_yaml(run / "config.yaml"), artifact.objective
    recipe = config["finetune"]
    made = {
        "recipe": recipe["name"],
        "settings": {name: recipe[name] for name in SETTINGS if name in recipe},
        "best_step": objective["step"],
        "seed": config["seed"],
        "first_token_acceptance": round(objective["acceptance_by_depth"][0], 4),
        "accepted_of_a_draft": round(objective["value"], 4),
        **more,
    }
    about = {
        "fingerprint": artifact.model["fingerprint"],
        "model": artifact.model["label"],
        "options": {name: value for name, value in artifact.options.items() if name != "adapter"},
        "made": made,
    }
    folder = FOLDER / path
    adapter.write(folder, eight_bit=True)
    write_text_atomic(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    return sum(file.stat().st_size for file in FOLDER.glob(f"*/{FILE}"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
