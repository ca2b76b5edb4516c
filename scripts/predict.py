"""Predict the speedup of a run on other machines:  python scripts/predict.py RUN --hardware FILE [FILE ...]

Every recorded step is priced at another machine's costs: its draft by the drafter's own forwards, its verification by
the size of its tree. FILE is a profile.json of task=profile, or a file of experiments/costs. How many tokens are
accepted depends only on model, text and drafter. So the result is the speedup that the recorded acceptance would give
there. The host's own work (lookups, Python) is left out, and so are a few small products of trained drafters (the LoRA
of pseudo tokens and their sampler).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from selfdraft.app.errors import one_line_script
from selfdraft.core.costmodel import CostModel
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters import DRAFTERS
from selfdraft.models.adapter import Adapter
from selfdraft.tracking.lines import read_measured, refuse_without_steps
from selfdraft.tracking.plain import NotPlain, read_plain_yaml

# Drafters without forwards of their own, those whose forwards count as full target forwards, and sparse ones.
NO_FORWARDS = ("none", "prompt_lookup", "suffix", "recycling", "lookahead", "pool", "pseudo_tokens")
IN_THE_STEP = ("jacobi",)
SPARSE = ("layer_skip", "early_exit")


class Drafting(NamedTuple):
    """The cost of drafting on the other machine.

    Attributes:
        token_s: seconds per drafted token.
        early: seconds of the leading layers, by number of tokens, which verification does not run again for drafted
            tokens; None if it reuses nothing.
    """

    token_s: float
    early: Callable[[int], float] | None = None


def drafting(drafter: dict, layers: int, vocabulary: int, costs: CostModel) -> Drafting | None:
    """Return the cost of the drafter's own forwards on the other machine; None if it makes none.

    A skip set is transferred by its shares of attentions, MLPs and whole layers, because models differ in depth, and a
    draft vocabulary by its share of the token ids.

    Raises:
        UserError: this script cannot price the drafter's forwards.
    """
    name = drafter["name"]
    if name in IN_THE_STEP or (name in NO_FORWARDS and (name == "pseudo_tokens" or not drafter.get("adapter"))):
        return None
    if name not in SPARSE:
        known = ", ".join((*SPARSE, *IN_THE_STEP, *NO_FORWARDS))
        raise UserError(f"drafter={name}: this script prices {known} (pool without an adapter)")
    skip, words = _path(drafter, layers, vocabulary)
    kept = (layers - len(skip.whole_layers()), layers - len(skip.attention), layers - len(skip.mlp))
    token_s = costs.kept(*(costs.layers * n / layers for n in kept))(1) - (1 - words / vocabulary) * costs.head(1)
    if (drafter.get("min_confidence") or 0.0) > 0 or drafter.get("length", "threshold") != "threshold":
        token_s += costs.confidence_s
    if not drafter.get("reuse"):
        return Drafting(token_s)
    leading = costs.layers * min([*skip.attention, *skip.mlp], default=layers) / layers
    run = costs.kept(leading, leading, leading)
    return Drafting(token_s, lambda n: run(n) - costs.base(n) if n else 0.0)


def _path(drafter: dict, layers: int, vocabulary: int) -> tuple[SkipSet, int]:
    """Return the skip set of a draft, and the number of token ids in its vocabulary."""
    if drafter.get("adapter"):
        adapter = Adapter.read(drafter["adapter"])
        words = adapter.tensors.get("vocabulary")
        skip = SkipSet.of(layers, adapter.settings["skip_attention"], adapter.settings["skip_mlp"])
        return skip, vocabulary if words is None else len(words)
    words = drafter.get("draft_vocabulary") or vocabulary
    if drafter["name"] == "early_exit":
        return SkipSet.from_layer(layers, drafter["exit_layer"] or max(1, layers // 2)), words
    if drafter["skip_attention"] is None and drafter["skip_mlp"] is None:
        return SkipSet.spread(layers, drafter["sparsity"]), words
    return SkipSet.of(layers, drafter["skip_attention"] or (), drafter["skip_mlp"] or ()), words


def predict(lines: list[dict], config: dict, layers: int, vocabulary: int, costs: CostModel) -> tuple[float, float]:
    """Return the seconds per token with and without the drafter, over all lines."""
    own = drafting(config["drafter"], layers, vocabulary, costs)
    tokens, seconds = 0, 0.0
    for line in lines:
        tokens += line["new_tokens"]
        for drafted, parents, *_ in line["steps"]:
            verified = len(drafted) + 1
            seconds += costs.forward(verified)
            if own is not None:  # one forward for each token of the chain; siblings need none
                depth = len(drafted) if parents is None else _depth(parents)
                seconds += depth * own.token_s
                if own.early is not None and depth:
                    seconds += own.early(verified - depth) - own.early(verified)
        refining = line["target_forwards"] - len(line["steps"])
        if config["drafter"]["name"] in IN_THE_STEP and config["drafter"].get("adapter"):
            # Refining forwards of an adapter are not counted as target forwards. This is their largest number,
            # because a block may converge earlier.
            refining = config["drafter"]["refine_steps"] * sum(len(drafted) > 0 for drafted, *_ in line["steps"])
        if refining:  # those of Jacobi drafting, each of a whole block
            seconds += refining * costs.forward(config["drafter"]["window"] + 1)
    return seconds / tokens, costs.forward(1)


def _depth(parents: list[int]) -> int:
    depths: list[int] = []
    for parent in parents:
        depths.append(1 + (depths[parent] if parent >= 0 else 0))
    return max(depths, default=0)


def read_run(folder: Path) -> tuple[list[dict], dict, dict]:
    """Return a run's lines, configuration and result.

    Raises:
        UserError: the folder is not that of a finished run.
    """
    try:
        options = dict(read_plain_yaml(folder / "config.yaml")["drafter"])
        drafter = DRAFTERS[options.pop("name")].Config.from_plain(options)
    except NotPlain as error:
        raise UserError(f"{folder} is no finished run of task=evaluate: {folder / 'config.yaml'}: {error}") from None
    except UserError as error:
        raise UserError(f"{folder / 'config.yaml'}: {error}") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder / 'config.yaml'} names no drafter: give the folder of a run (hydra.run.dir)"
        ) from None
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        result = {name: result[name] for name in ("drafter", "model", "dtype", "speedup_total")}
        result["speedup_total"] = float(result["speedup_total"])
    except OSError as error:
        raise UserError(f"{folder} is no finished run of task=evaluate: {error.strerror} ({error.filename})") from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{folder / 'result.json'} is no result of task=evaluate") from None
    config = {"drafter": asdict(drafter)}
    lines = read_measured(folder)
    if not lines:
        raise UserError(f"{folder} is no finished run of task=evaluate: there is no complete line in its prompts.jsonl")
    refuse_without_steps(lines, folder)
    if not any(line["new_tokens"] for line in lines):
        raise UserError(f"{folder} holds no token that was decoded: give a run with longer answers")
    return lines, config, result


@one_line_script("predict")
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--hardware", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--layers", type=int, default=30, help="of the model that the run decoded with (default: 30)")
    parser.add_argument("--vocabulary", type=int, default=49152, help="of that model (default: 49152)")
    given = parser.parse_args(arguments)
    lines, config, result = read_run(given.run)
    print(f"{result['drafter']} on {result['model']} in {result['dtype']}, {len(lines)} turns")
    print(f"measured there: {result['speedup_total']:.2f} over all tokens\n")
    print("| model | device | plain ms/token | drafted ms/token | predicted speedup |\n|---|---|---|---|---|")
    for path in given.hardware:
        try:
            costs = CostModel.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"--hardware {path} cannot be read: {error}") from None
        drafted, plain = predict(lines, config, given.layers, given.vocabulary, costs)
        kind = " (roofline)" if costs.source.startswith("roofline") else ""
        cells = f"{costs.model} | {costs.device}{kind} | {1e3 * plain:.2f} | {1e3 * drafted:.2f}"
        print(f"| {cells} | {plain / drafted:.2f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
