"""Tree parallelism: two processes give the text of one, and each computes less."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from command_line import of_ranks
from lossless import LOSSLESS, name_of
from random_trees import ancestry, random_tree
from selfdraft.core.lookahead import window_parents
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.tree_parallel import after_chain, share_out
from tree_ranks import RANKS, SHARED, answers, target


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The runs of both processes, and that of a single process."""
    both = of_ranks("tree_ranks.py", RANKS, tmp_path_factory.mktemp("group"))
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
