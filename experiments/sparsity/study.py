"""Sparsity against acceptance against predicted speedup, for attention, MLP and both.

    python experiments/sparsity/study.py [--prompts 4] [--tokens 48] [--file PROMPTS]

For every kind of sublayer they are ordered by what leaving out one alone does to the agreement with the full model, and
left out in that order, one more each time. Every point is one parallel sparse forward a text (core/replay), priced at
costs measured here and at those of the files in experiments/costs. Writes study.json and study.png beside itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.costmodel import CostModel
from selfdraft.core.errors import UserError
from selfdraft.core.replay import acceptance_by_depth, agreement, best_choice
from selfdraft.core.skipset import SkipSet
from selfdraft.data.prompts import Prompt
from selfdraft.data.sources import load_bundled, load_jsonl
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.decoding.traces import Tracer
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import load_embedded
from selfdraft.models.measuring.profiling import costs_on, measure_parts

HERE = Path(__file__).parent
KINDS = {"attention": ("attention",), "MLP": ("mlp",), "both": ("attention", "mlp")}
COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28)
COLOURS = {"attention": "#3b6fb6", "MLP": "#e08a2e", "both": "#5aa469"}


def trace(prompts: list[Prompt], tokens: int) -> tuple[Tracer, CostModel]:
    """The model's own answers, ready to be replayed, and what its forwards cost here."""
    loaded = load_embedded("bfloat16", torch.device("cpu"))
    target, chat = Target(loaded.model), Chat(loaded.tokenizer)
    drafter = drafter_for(target, configured("none"), costs_on(target))
    decoder = Decoder(target, drafter, Stopping(loaded.eos, tokens))
    asked = [chat.encode([("user", prompt.turns[0])]) for prompt in prompts]
    texts = [(ids, decoder.decode(ids).output) for ids in asked]
    costs = measure_parts(target, device="this machine", model="smollm2_135m", source="study.py")
    return Tracer(target, texts, decoder.rule), costs


def skipping(sublayers: list[tuple[str, int]]) -> SkipSet:
    """The set of these sublayers."""
    return SkipSet(*(frozenset(i for kind, i in sublayers if kind == wanted) for wanted in ("attention", "mlp")))


@one_line_script("study")
def main(arguments: list[str]) -> None:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, help="how many of them (default: 4)")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer, at most (default: 48)")
    parser.add_argument("--file", type=Path, help="prompts in Spec-Bench's schema (default: the bundled ones)")
    given = parser.parse_args(arguments)
    if min(given.prompts, given.tokens) < 1:
        raise UserError("--prompts and --tokens: at least 1")
    prompts = load_jsonl(given.file) if given.file else load_bundled()
    tracer, here = trace(prompts[:: max(len(prompts) // given.prompts, 1)][: given.prompts], given.tokens)
    machines = {"here": here}
    for path in sorted((HERE.parent / "costs").glob("*7b*roofline.json")):
        machines[path.stem] = CostModel.from_dict(json.loads(path.read_text()))
    layers = here.layers
    alone = {
        (kind, i): agreement(tracer.traces(skipping([(kind, i)])))
        for kind in ("attention", "mlp")
        for i in range(1, layers - 1)
    }
    points = []
    for name, kinds in KINDS.items():
        ordered = sorted((s for s in alone if s[0] in kinds), key=alone.get, reverse=True)
        for count in (c for c in COUNTS if c <= len(ordered)):
            skip = skipping(ordered[:count])
            traces = tracer.traces(skip)
            kept = (layers - len(skip.whole_layers()), layers - len(skip.attention), layers - len(skip.mlp))
            point = {
                "kind": name,
                "skipped": count,
                "agreement": agreement(traces),
                "acceptance_by_depth": acceptance_by_depth(traces, 5),
                "draft_cost": here.sparse(skip)(1) / here.forward(1),
            }
            for machine, costs in machines.items():
                draft_s = costs.kept(*(costs.layers * k / layers for k in kept))(1)
                choice = best_choice(traces, costs.forward, draft_s, costs.confidence_s)
                point[f"speedup {machine}"] = choice.speedup
                point[f"drafts {machine}"] = [choice.draft_length, choice.min_confidence]
            points.append(point)
            print(
                f"{name:9} {count:3}  agreement {point['agreement']:.3f}  draft {point['draft_cost']:.2f}  "
                + "  ".join(f"{machine} {point[f'speedup {machine}']:.2f}" for machine in machines)
            )
    single = {f"{kind} {i}": value for (kind, i), value in alone.items()}
    (HERE / "study.json").write_text(json.dumps({"alone": single, "points": points}, indent=1) + "\n")
    plot(points, list(machines)[:2], HERE / "study.png")  # both GPUs are bound by memory: their lines coincide


def plot(points: list[dict], machines: list[str], path: Path) -> None:
    """Agreement by sublayers left out and by cost, and the speedups predicted from both."""
    figure = Figure(figsize=(12, 4), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, colour in COLOURS.items():
        mine = [p for p in points if p["kind"] == name]
        left.plot([p["skipped"] for p in mine], [p["agreement"] for p in mine], "o-", color=colour, label=name)
        middle.plot([p["draft_cost"] for p in mine], [p["agreement"] for p in mine], "o-", color=colour)
        for machine, style in zip(machines, ("o-", "s--"), strict=True):
            right.plot([p["skipped"] for p in mine], [p[f"speedup {machine}"] for p in mine], style, color=colour)
    left.set_xlabel("sublayers left out")
    left.set_ylabel("agreement with the full model")
    left.legend(frameon=False)
    middle.set_xlabel("cost of a drafted token, in forwards")
    middle.set_ylabel("agreement with the full model")
    right.axhline(1.0, color="#8a8a8a", linewidth=1)
    right.set_xlabel("sublayers left out")
    right.set_ylabel("predicted speedup, best length and threshold")
    right.set_title("solid: here; dashed: a 7B model on an A100, roofline", fontsize=8)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
