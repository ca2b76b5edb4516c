"""One process of a group that decodes by tree parallelism:  python tests/tree_ranks.py RANK FOLDER

Writes what it decoded to FOLDER/RANK.json; tests/decoding/test_tree_parallel.py compares the processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lossless import LOSSLESS, ONE_EACH, name_of
from made import made
from selfdraft.core.costs import CostCurve
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.decoding.tree_parallel import TreeParallelTarget
from selfdraft.drafters.presets import is_tree_parallel
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model

PROMPTS = [[5, 17, 3, 5, 17, 3, 5], [30, 31, 32, 33, 30, 31, 32, 33, 30], [11, 12, 11], [64, 12, 64]]
LENGTH, RANKS = 20, 2
RULES = {"greedy": NextToken(), "sample": NextToken(sample=True, temperature=0.8)}
TRIED = [*LOSSLESS["lookahead"], *(c for c in ONE_EACH if c.name != "lookahead" and "+" not in c.label)]
SHARED = [config for config in TRIED if is_tree_parallel(config)]


def target() -> tuple[Target, list[int]]:
    """The same tiny model in every process, and the tokens of each of its full forwards."""
    model = tiny_model("llama", seed=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(100.0)  # drafts are right now and then: see test_lossless.py
    whole, sizes = Target(model, packed=False), []
    plain = whole.forward

    def counting(rows, roots, trees, **asked):
        sizes.append(sum(1 + len(tree) for tree in trees))
        return plain(rows, roots, trees, **asked)

    whole.forward = counting
    whole.costs = CostCurve((1, 64), (1.0, 2.0))  # measured ones would make drafts differ from run to run
    whole.costs_of = lambda path: CostCurve((1, 64), (0.4, 0.8))
    return whole, sizes


def answers(of: Target | TreeParallelTarget, sizes: list[int]) -> dict[str, dict]:
    """Every config's texts by every rule, two rows at once, and what was computed for them."""
    runs = {}
    for number, config in enumerate(SHARED):
        for rule, how in RULES.items():
            if rule != "greedy" and number % 3:
                continue  # what a rule does to a tree is not the drafter's
            sizes.clear()
            decoder = Decoder(of, made(of, config), Stopping(frozenset(), LENGTH), rule=how, batch_size=2)
            requests = [Request(prompt, seed=i, key=i) for i, prompt in enumerate(PROMPTS)]
            done = {request.key: g for request, g in decoder.run(requests) if g.ended}
            runs[f"{name_of(config)} {rule}"] = {
                "texts": [done[i].output for i in range(len(PROMPTS))],
                "steps": [done[i].steps for i in range(len(PROMPTS))],
                "forwards": [done[i].counts.target_forwards for i in range(len(PROMPTS))],
                "computed": sum(sizes),
            }
    return runs


def work(rank: int, folder: str) -> None:
    """One process of the group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    whole, sizes = target()
    Path(folder, f"{rank}.json").write_text(json.dumps(answers(TreeParallelTarget(whole), sizes)))
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
