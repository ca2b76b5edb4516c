"""Tree parallelism: two processes give the text of one, and each computes less."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from lossless import LOSSLESS, ONE_EACH, name_of
from made import made
from random_trees import ancestry, random_tree
from selfdraft.core.costs import CostCurve
from selfdraft.core.lookahead import window_parents
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.decoding.tree_parallel import TreeParallelTarget, after_chain, share_out
from selfdraft.drafters.presets import is_tree_parallel
from selfdraft.models.target import Target
from selfdraft.models.tiny import tiny_model

PROMPTS = [[5, 17, 3, 5, 17, 3, 5], [30, 31, 32, 33, 30, 31, 32, 33, 30], [11, 12, 11], [64, 12, 64]]
LENGTH, RANKS = 20, 2
RULES = {"greedy": NextToken(), "sample": NextToken(sample=True, temperature=0.8)}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_every_node_has_an_owner_that_computes_all_its_ancestors(seed: int, ranks: int) -> None:
    tree = random_tree(np.random.default_rng(seed), 5 * seed)
    share = share_out(tree, ranks)
    for node in range(len(tree)):
        assert share.held[share.owner[node], ancestry(tree, node)].all()
    assert torch.equal(share.held.any(0), torch.ones(len(tree), dtype=torch.bool))
    owned = torch.bincount(share.owner, minlength=ranks)
    longest = int(max(tree.depths, default=0))
    assert int(owned.max()) - int(owned.min()) <= 2 * longest or len(tree) == 0  # a leaf is dealt whole


def test_a_lookahead_window_is_shared_out_by_columns() -> None:
    parents = window_parents(6, 3)
    tree = TokenTree(torch.arange(len(parents)), parents, torch.zeros(len(parents), dtype=torch.bool))
    share = share_out(tree, 2)
    last_row = slice(len(tree) - 6, len(tree))
    assert share.owner[last_row].tolist() == [0, 0, 0, 1, 1, 1]
    assert share.held.sum(1).tolist() == [2 + 9, 5 + 9]  # row 0 up to the last column, and three columns of three


def test_a_tree_is_hung_below_the_end_of_a_chain() -> None:
    tree = after_chain([8, 9], TokenTree.merged([[1, 2], [3]]))
    assert (tree.tokens.tolist(), tree.parents.tolist()) == ([8, 9, 1, 2, 3], [-1, 0, 1, 2, 1])
    assert len(after_chain([], tree)) == 5


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The runs of both processes, and that of a single process."""
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS)
    both = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    single = json.loads(json.dumps(answers(*target())))
    return [*both, single]


@pytest.mark.slow
def test_two_processes_write_the_same_texts_as_one(runs: list[dict]) -> None:
    assert len(runs[0]) > len(SHARED)
    for name in runs[0]:
        first, second, single = (each[name] for each in runs)
        for key in ("texts", "steps", "forwards"):
            assert first[key] == second[key] == single[key], (name, key)


@pytest.mark.slow
def test_each_of_two_processes_computes_less_than_a_single_one(runs: list[dict]) -> None:
    for config in LOSSLESS["lookahead"]:
        if config.window < 3:
            continue  # hardly a tree
        first, second, single = (each[f"{name_of(config)} greedy"]["computed"] for each in runs)
        assert max(first, second) < 0.85 * single
        assert first + second >= single


@pytest.mark.slow
def test_missing_tokens_of_other_processes_were_computed_later(runs: list[dict]) -> None:
    """Accepted nodes that the other process had computed, or the equalities would say little."""
    for rank in range(RANKS):
        missing = 0
        for config in LOSSLESS["lookahead"]:
            for steps in runs[rank][f"{name_of(config)} greedy"]["steps"]:
                for tokens, parents, path, *_ in steps:
                    if parents is not None and path:
                        flags = torch.ones(len(tokens), dtype=torch.bool)
                        held = share_out(TokenTree(torch.tensor(tokens), torch.tensor(parents), flags), RANKS).held
                        missing += int((~held[rank, path]).sum())
        assert missing > 0
