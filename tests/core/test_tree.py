"""Token trees: the matrix results equal those of walking from node to node."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from naming import naming
from random_trees import ancestry, branch, random_tree
from selfdraft.core.tree import ROOT, TokenTree

TREES = [
    random_tree(np.random.default_rng(seed), nodes) for seed, nodes in enumerate([0, 1, 2, 3, 5, 8, 13, 21, 40, 64])
]
# A long trunk with one twig: the deepest reach that pointer doubling has to find, and no chain.
TREES.append(TokenTree(torch.arange(38), torch.tensor([*range(-1, 36), 3]), torch.ones(38, dtype=torch.bool)))


def test_a_node_sees_itself_and_its_ancestors_and_nothing_else() -> None:
    for tree in TREES:
        with naming(f"{len(tree)} nodes"):
            expected = torch.zeros(len(tree), len(tree), dtype=torch.bool)
            for node in range(len(tree)):
                expected[node, ancestry(tree, node)] = True
            assert torch.equal(tree.sees, expected)


def test_depth_counts_the_nodes_on_the_way_down() -> None:
    for tree in TREES:
        with naming(f"{len(tree)} nodes"):
            assert tree.depths.tolist() == [len(ancestry(tree, node)) for node in range(len(tree))]


def test_cutting_to_a_depth_keeps_all_nodes_above() -> None:
    for tree, depth in product(TREES, [0, 1, 2, 3, 7, 100]):
        with naming(f"{len(tree)} nodes", f"depth {depth}"):
            cut = tree.up_to_depth(depth)
            kept = [node for node in range(len(tree)) if len(ancestry(tree, node)) <= depth]
            # The branch of a node is its identity: renumbered parents that point elsewhere would change it.
            assert [branch(cut, node) for node in range(len(cut))] == [branch(tree, node) for node in kept]
            assert torch.equal(cut.is_candidate, tree.is_candidate[kept])


def test_a_depth_is_offered_if_it_has_a_candidate() -> None:
    for tree in TREES:
        with naming(f"{len(tree)} nodes"):
            deep = {len(ancestry(tree, node)) for node in range(len(tree)) if tree.is_candidate[node]}
            assert tree.offered_by_depth() == [depth in deep for depth in range(1, max(deep, default=0) + 1)]


def test_probes_do_not_count_as_offered() -> None:
    below_a_probe = TokenTree(torch.tensor([4, 5]), torch.tensor([ROOT, 0]), torch.tensor([False, True]))
    assert below_a_probe.offered_by_depth() == [False, True]
    only_probes = TokenTree(torch.tensor([4, 5]), torch.tensor([ROOT, 0]), torch.tensor([False, False]))
    assert only_probes.offered_by_depth() == []


def test_in_a_chain_every_token_is_the_child_of_the_one_before() -> None:
    chain = TokenTree.chain([7, 8, 9])
    assert chain.is_chain
    assert chain.parents.tolist() == [ROOT, 0, 1]
    assert chain.is_candidate.tolist() == [True, True, True]
    assert [branch(chain, node) for node in range(3)] == [[7], [7, 8], [7, 8, 9]]


def test_a_tree_with_branches_is_not_a_chain() -> None:
    for parents in [[ROOT, ROOT], [ROOT, 0, 0], [ROOT, 0, 1, ROOT]]:
        with naming(parents):
            n = len(parents)
            assert not TokenTree(
                torch.zeros(n, dtype=torch.long), torch.tensor(parents), torch.ones(n, dtype=torch.bool)
            ).is_chain


def test_the_empty_tree_is_a_step_without_a_draft() -> None:
    empty = TokenTree.empty()
    assert (len(empty), empty.is_chain, empty.depths.tolist(), empty.offered_by_depth()) == (0, True, [], [])
    assert empty.sees.shape == (0, 0)


def test_a_parent_after_its_child_is_refused() -> None:
    for parents in [[0, 0], [1, ROOT], [ROOT, 1], [ROOT, -2]]:
        with naming(parents), pytest.raises(ValueError, match="must come before it"):
            TokenTree(torch.tensor([1, 2]), torch.tensor(parents), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(("parents", "flags"), [([ROOT], [True, True]), ([ROOT, 0], [True])])
def test_a_tree_whose_parts_differ_in_length_is_refused(parents: list[int], flags: list[bool]) -> None:
    with pytest.raises(ValueError, match="a tree of 2 tokens"):
        TokenTree(torch.tensor([1, 2]), torch.tensor(parents), torch.tensor(flags))


def test_merged_branches_share_common_prefixes() -> None:
    for branches, tokens, parents in [
        ([], [], []),
        ([[]], [], []),
        ([[1, 2], [1, 3], [4]], [1, 2, 3, 4], [-1, 0, 0, -1]),
        ([[1, 1, 1], [1, 1]], [1, 1, 1], [-1, 0, 1]),
        ([[1, 2], [2, 1], [1, 2, 3]], [1, 2, 2, 1, 3], [-1, 0, -1, 2, 1]),
    ]:
        with naming(branches, tokens, parents):
            tree = TokenTree.merged(branches)
            assert (tree.tokens.tolist(), tree.parents.tolist()) == (tokens, parents)
            assert bool(tree.is_candidate.all())


def test_the_branches_of_a_merged_tree_are_those_given() -> None:
    for seed in range(8):
        with naming(f"seed {seed}"):
            rng = np.random.default_rng(seed)
            branches = [rng.integers(3, size=rng.integers(1, 5)).tolist() for _ in range(6)]
            tree = TokenTree.merged(branches)
            paths = [tuple(branch(tree, node)) for node in range(len(tree))]
            assert len(set(paths)) == len(paths)
            assert set(paths) == {tuple(each[:end]) for each in branches for end in range(1, len(each) + 1)}


def test_probes_next_to_a_tree_are_children_of_the_same_root() -> None:
    tree = TokenTree.merged([[1, 2], [3]]).beside(torch.tensor([7, 8, 9]), torch.tensor([-1, 0, -1]))
    assert tree.tokens.tolist() == [1, 2, 3, 7, 8, 9]
    assert tree.parents.tolist() == [-1, 0, -1, -1, 3, -1]
    assert tree.is_candidate.tolist() == [True] * 3 + [False] * 3


def test_chains_side_by_side_share_only_the_root() -> None:
    tree = TokenTree.chains(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert (tree.tokens.tolist(), tree.parents.tolist()) == ([1, 2, 3, 4, 5, 6], [-1, 0, 1, -1, 3, 4])
    assert not tree.is_chain and TokenTree.chains(torch.tensor([[1, 2]])).is_chain
    assert len(TokenTree.chains(torch.empty(2, 0, dtype=torch.long))) == 0


def test_separate_branches_share_no_nodes_and_may_have_any_length() -> None:
    tree = TokenTree.separate([[5, 6], [], [5], [7, 8, 9]])
    assert tree.tokens.tolist() == [5, 6, 5, 7, 8, 9]
    assert tree.parents.tolist() == [ROOT, 0, ROOT, ROOT, 3, 4]
    assert len(TokenTree.separate([])) == 0
    same = TokenTree.chains(torch.tensor([[1, 2], [3, 4]]))
    assert torch.equal(TokenTree.separate([[1, 2], [3, 4]]).parents, same.parents)


def test_a_branch_goes_on_with_first_children() -> None:
    tree = TokenTree(torch.arange(7), torch.tensor([ROOT, 0, 0, 1, 2, ROOT, 5]), torch.ones(7, dtype=torch.bool))
    assert tree.branch_through([]) == [0, 1, 3]
    assert tree.branch_through([0, 2]) == [0, 2, 4]
    assert tree.branch_through([5]) == [5, 6]
    assert TokenTree.empty().branch_through([]) == []
