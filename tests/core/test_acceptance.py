"""Greedy acceptance: exactly the greedy text is accepted, whatever the shape of the tree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from random_trees import ancestry, branch, random_tree
from selfdraft.core.acceptance import Acceptance, accept_greedy
from selfdraft.core.tree import ROOT, TokenTree


def walk(tree: TokenTree, predictions: list[int]) -> tuple[list[int], int]:
    """The greedy text as far as the tree contains it, and the token after it, node by node.

    All nodes that hold the text so far are kept, since of two equal siblings only one may lead on.
    """
    nodes, text = {ROOT}, []
    while True:
        children = [i for i in range(len(tree)) if tree.is_candidate[i] and int(tree.parents[i]) in nodes]
        right = {i for i in children if int(tree.tokens[i]) == predictions[int(tree.parents[i]) + 1]}
        if not right:
            return text, predictions[min(nodes) + 1]
        tokens = {int(tree.tokens[i]) for i in right}
        assert len(tokens) == 1  # equal texts are continued alike: see `of_the_text`
        nodes, text = right, [*text, tokens.pop()]


def of_the_text(tree: TokenTree, vocab: int, seed: int) -> list[int]:
    """Predictions as a model makes them: a fixed function of the text, so that equal branches are continued alike."""

    def after(text: list[int]) -> int:
        return int(np.random.default_rng([seed, len(text), *text]).integers(vocab))

    return [after([]), *(after(branch(tree, node)) for node in range(len(tree)))]


@pytest.mark.parametrize("probes", [0.0, 0.3])
@pytest.mark.parametrize("vocab", [2, 3, 8])
def test_on_random_trees_the_accepted_text_is_the_greedy_text(vocab: int, probes: float) -> None:
    longest = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        tree = random_tree(rng, int(rng.integers(0, 40)), vocab, probes)
        predictions = of_the_text(tree, vocab, seed)
        text, bonus = walk(tree, predictions)
        acceptance = accept_greedy(tree, torch.tensor(predictions))
        assert [int(tree.tokens[i]) for i in acceptance.nodes] == text
        assert acceptance.bonus == bonus
        # It is one branch, from the root downwards, without a probe on it.
        assert list(acceptance.nodes) == (ancestry(tree, acceptance.nodes[-1]) if text else [])
        assert all(tree.is_candidate[i] for i in acceptance.nodes)
        longest = max(longest, len(text))
    assert longest >= 2  # or the trees would never have tested a path


@pytest.mark.parametrize(
    ("predictions", "path", "bonus"),
    [
        ([9, 1, 2, 3], (), 9),
        ([5, 9, 7, 3], (0,), 9),
        ([5, 6, 9, 3], (0, 1), 9),
        ([5, 6, 7, 3], (0, 1, 2), 3),
        ([9, 6, 7, 3], (), 9),  # right tokens after a wrong one are not accepted
    ],
)
def test_a_chain_is_accepted_up_to_its_first_mismatch(
    predictions: list[int], path: tuple[int, ...], bonus: int
) -> None:
    assert accept_greedy(TokenTree.chain([5, 6, 7]), torch.tensor(predictions)) == Acceptance(path, bonus)


def test_without_a_draft_the_bonus_token_is_emitted() -> None:
    assert accept_greedy(TokenTree.empty(), torch.tensor([4])) == Acceptance((), 4)


def test_a_correct_probe_is_not_accepted() -> None:
    chain = TokenTree.chain([5, 6])
    predictions = torch.tensor([5, 6, 7])
    for probe, path, bonus in ((0, (), 5), (1, (0,), 6)):
        flags = torch.tensor([i != probe for i in range(2)])
        assert accept_greedy(TokenTree(chain.tokens, chain.parents, flags), predictions) == Acceptance(path, bonus)


def test_nothing_below_a_probe_is_accepted() -> None:
    tree = TokenTree(torch.tensor([5, 4, 6]), torch.tensor([ROOT, ROOT, 0]), torch.tensor([False, True, True]))
    assert accept_greedy(tree, torch.tensor([5, 6, 0, 7])) == Acceptance((), 5)


def test_among_equal_siblings_the_one_with_the_longest_branch_is_accepted() -> None:
    tree = TokenTree(torch.tensor([5, 5, 6]), torch.tensor([ROOT, ROOT, 1]), torch.ones(3, dtype=torch.bool))
    assert accept_greedy(tree, torch.tensor([5, 6, 6, 7])) == Acceptance((1, 2), 7)
