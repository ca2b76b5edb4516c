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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.costmodel import CostModel
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.drafters import PATHS
from selfdraft.drafters.base import DrafterConfig, PathDrafterConfig
from selfdraft.drafters.chain import ChainConfig
from selfdraft.drafters.jacobi import JacobiConfig
from selfdraft.drafters.paths.early_exit import EarlyExitConfig
from selfdraft.drafters.paths.layer_skip import LayerSkipConfig
from selfdraft.drafters.paths.trained import TrainedConfig
from selfdraft.drafters.presets import PRESETS, configured, options_of
from selfdraft.models.trained.adapter import Adapter
from selfdraft.tracking.files.plain import NotPlain, read_plain_yaml
from selfdraft.tracking.numbers.lines import read_measured, refuse_without_steps

# Drafters, by the names that results show: those without forwards of their own, those whose forwards count as full
# target forwards (or cost as much as one), and chains that a part of the model drafts.
NO_FORWARDS = ("none", "prompt_lookup", "suffix", "recycling", "lookahead", "pool", "pseudo_tokens")
IN_THE_STEP = ("jacobi", "jacobi+trained")
SPARSE = ("layer_skip", "early_exit", "trained")


class Drafting(NamedTuple):
    """The cost of drafting on the other machine.

    Attributes:
        token_s: seconds per drafted token.
        early: seconds of the leading layers, by number of tokens, which verification does not run again for drafted
            tokens; None if it reuses nothing.
    """

    token_s: float
    early: Callable[[int], float] | None = None


def drafting(drafter: DrafterConfig, layers: int, vocabulary: int, costs: CostModel) -> Drafting | None:
    """Return the cost of the drafter's own forwards on the other machine; None if it makes none.

    A skip set is transferred by its shares of attentions, MLPs and whole layers, because models differ in depth, and a
    draft vocabulary by its share of the token ids.

    Raises:
        UserError: this script cannot price the drafter's forwards.
    """
    if drafter.label in NO_FORWARDS or (drafter.label in IN_THE_STEP and not _skipped(drafter, layers)):
        return None
    if not isinstance(drafter, ChainConfig) or drafter.label not in SPARSE:
        known = ", ".join((*SPARSE, *IN_THE_STEP, *NO_FORWARDS))
        raise UserError(
            f"drafter={drafter.label}: this script prices {known} (pool without an adapter, jacobi with one that "
            "skips nothing)"
        )
    skip, words = _skipped(drafter, layers), drafter.draft_vocabulary or vocabulary
    if isinstance(drafter.path, TrainedConfig) and drafter.draft_vocabulary is None:
        words = len(Adapter.read(drafter.path.adapter).tensors.get("vocabulary", range(vocabulary)))
    kept = (layers - len(skip.whole_layers()), layers - len(skip.attention), layers - len(skip.mlp))
    token_s = costs.kept(*(costs.layers * n / layers for n in kept))(1) - (1 - words / vocabulary) * costs.head(1)
    if drafter.min_confidence > 0 or drafter.length != "threshold":
        token_s += costs.confidence_s
    if not drafter.reuse:
        return Drafting(token_s)
    leading = costs.layers * min([*skip.attention, *skip.mlp], default=layers) / layers
    run = costs.kept(leading, leading, leading)
    return Drafting(token_s, lambda n: run(n) - costs.base(n) if n else 0.0)


def _skipped(drafter: PathDrafterConfig, layers: int) -> SkipSet:
    """Return what the drafter's path leaves out."""
    path = drafter.path
    if isinstance(path, TrainedConfig):
        settings = Adapter.read(path.adapter).settings
        return SkipSet.of(layers, settings["skip_attention"], settings["skip_mlp"])
    if isinstance(path, EarlyExitConfig):
        return SkipSet.from_layer(layers, path.exit_layer or max(1, layers // 2))
    if isinstance(path, LayerSkipConfig):
        return SkipSet.named_or_spread(layers, path.skip_attention, path.skip_mlp, path.sparsity)
    return SkipSet()


def predict(
    lines: list[dict], drafter: DrafterConfig, layers: int, vocabulary: int, costs: CostModel
) -> tuple[float, float]:
    """Return the seconds per token with and without the drafter, over all lines."""
    own = drafting(drafter, layers, vocabulary, costs)
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
        if not isinstance(drafter, JacobiConfig):
            continue
        if drafter.path.name != "full":
            # Refining forwards of an adapter are not counted as target forwards. This is their largest number,
            # because a block may converge earlier.
            refining = drafter.refine_steps * sum(len(drafted) > 0 for drafted, *_ in line["steps"])
        seconds += refining * costs.forward(drafter.window + 1)  # each of a whole block
    return seconds / tokens, costs.forward(1)


def _depth(parents: list[int]) -> int:
    depths: list[int] = []
    for parent in parents:
        depths.append(1 + (depths[parent] if parent >= 0 else 0))
    return max(depths, default=0)


def drafter_of(plain: Mapping[str, Any]) -> DrafterConfig:
    """Return the drafter that the group `drafter` of a run's config.yaml describes.

    In runs of earlier versions, the options of the path are among those of the drafter, even beside an adapter.

    Raises:
        UserError: an option is wrong. KeyError, TypeError or ValueError: it describes no drafter.
    """
    options = dict(plain)
    name = options.pop("name")
    if "path" in options:
        path = dict(options.pop("path"))
        return configured(name, path.pop("name"), **options, **path)
    preset = PRESETS[name]
    if preset.path is not None and options.get("adapter") is not None:
        for option in options_of(PATHS[preset.path].Config):
            options.pop(option, None)
    return configured(name, **options)


def read_run(folder: Path) -> tuple[list[dict], DrafterConfig, dict]:
    """Return a run's lines, drafter and result.

    Raises:
        UserError: the folder is not that of a finished run.
    """
    try:
        drafter = drafter_of(read_plain_yaml(folder / "config.yaml")["drafter"])
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
    lines = read_measured(folder)
    if not lines:
        raise UserError(f"{folder} is no finished run of task=evaluate: there is no complete line in its prompts.jsonl")
    refuse_without_steps(lines, folder)
    if not any(line["new_tokens"] for line in lines):
        raise UserError(f"{folder} holds no token that was decoded: give a run with longer answers")
    return lines, drafter, result


@one_line_script("predict")
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--hardware", type=Path, nargs="+", required=True, metavar="FILE", help="costs of forwards")
    parser.add_argument("--layers", type=int, default=30, help="of the model that the run decoded with (default: 30)")
    parser.add_argument("--vocabulary", type=int, default=49152, help="of that model (default: 49152)")
    given = parser.parse_args(arguments)
    lines, drafter, result = read_run(given.run)
    print(f"{result['drafter']} on {result['model']} in {result['dtype']}, {len(lines)} turns")
    print(f"measured there: {result['speedup_total']:.2f} over all tokens\n")
    print("| model | device | plain ms/token | drafted ms/token | predicted speedup |\n|---|---|---|---|---|")
    for path in given.hardware:
        try:
            costs = CostModel.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"--hardware {path} cannot be read: {error}") from None
        drafted, plain = predict(lines, drafter, given.layers, given.vocabulary, costs)
        kind = " (roofline)" if costs.source.startswith("roofline") else ""
        cells = f"{costs.model} | {costs.device}{kind} | {1e3 * plain:.2f} | {1e3 * drafted:.2f}"
        print(f"| {cells} | {plain / drafted:.2f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
