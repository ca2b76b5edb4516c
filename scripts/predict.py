"""What a run's acceptances would be worth elsewhere:  python scripts/predict.py RUN --hardware FILE [FILE ...]

Every recorded step is priced at another machine's costs: its draft by the drafter's own forwards, its verification by
the size of its tree. FILE is a profile.json of task=profile, or one of experiments/costs. What a drafter accepts hangs
on model, text and drafter alone, so this says: were *these* acceptances had there, what would the speedup be?
The host's own work (lookups, Python) is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from selfdraft.app.errors import one_line_script
from selfdraft.core.costmodel import CostModel
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet

NO_FORWARDS = ("none", "prompt_lookup")  # drafters whose drafts cost no forward
IN_THE_STEP = ("jacobi",)  # those whose forwards of their own are full ones, counted as such


def draft_cost(drafter: dict, layers: int, costs: CostModel) -> CostCurve | None:
    """Seconds of one of the drafter's own forwards there; None where it makes none.

    A skip set is carried over by its shares of attentions, MLPs and whole layers, since models differ in depth.

    Raises:
        UserError: a drafter whose forwards this script cannot price.
    """
    name = drafter["name"]
    if name in NO_FORWARDS + IN_THE_STEP:
        return None
    if name != "layer_skip":
        raise UserError(f"drafter={name}: this script prices layer_skip, jacobi, prompt_lookup and none")
    if drafter["skip_attention"] is None and drafter["skip_mlp"] is None:
        skip = SkipSet.spread(layers, drafter["sparsity"])
    else:
        skip = SkipSet.of(layers, drafter["skip_attention"] or (), drafter["skip_mlp"] or ())
    kept = (len(skip.whole_layers()), len(skip.attention), len(skip.mlp))
    return costs.kept(*(costs.layers * (1 - skipped / layers) for skipped in kept))


def predict(lines: list[dict], config: dict, layers: int, costs: CostModel) -> tuple[float, float]:
    """Seconds a token with and without the drafter, over all lines."""
    own = draft_cost(config["drafter"], layers, costs)
    threshold = (config["drafter"].get("min_confidence") or 0.0) > 0
    tokens, seconds = 0, 0.0
    for line in lines:
        tokens += line["new_tokens"]
        for drafted, parents, *_ in line["steps"]:
            seconds += costs.forward(len(drafted) + 1)
            if own is not None:  # a forward for each token of the chain; siblings come along
                depth = len(drafted) if parents is None else _depth(parents)
                seconds += depth * (own(1) + (costs.confidence_s if threshold else 0.0))
        refining = line["target_forwards"] - len(line["steps"])
        if refining:  # Jacobi's, each of a whole block
            seconds += refining * costs.forward(config["drafter"]["window"] + 1)
    return seconds / tokens, costs.forward(1)


def _depth(parents: list[int]) -> int:
    depths: list[int] = []
    for parent in parents:
        depths.append(1 + (depths[parent] if parent >= 0 else 0))
    return max(depths, default=0)


def read_run(folder: Path) -> tuple[list[dict], dict, dict]:
    """Lines, configuration and result.

    Raises:
        UserError: it is no finished run.
    """
    try:
        lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return lines, config, json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} is no finished run of task=evaluate: {error.strerror} ({error.filename})") from None


@one_line_script("predict")
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--hardware", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--layers", type=int, default=30, help="of the model that the run decoded with (default: 30)")
    given = parser.parse_args(arguments)
    lines, config, result = read_run(given.run)
    print(f"{result['drafter']} on {result['model']} in {result['dtype']}, {len(lines)} turns")
    print(f"measured there: {result['speedup_total']:.2f} over all tokens\n")
    print("| model | device | plain ms/token | drafted ms/token | predicted speedup |\n|---|---|---|---|---|")
    for path in given.hardware:
        try:
            costs = CostModel.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError) as error:
            raise UserError(f"--hardware {path} cannot be read: {error}") from None
        drafted, plain = predict(lines, config, given.layers, costs)
        kind = " (roofline)" if costs.source.startswith("roofline") else ""
        cells = f"{costs.model} | {costs.device}{kind} | {1e3 * plain:.2f} | {1e3 * drafted:.2f}"
        print(f"| {cells} | {plain / drafted:.2f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
