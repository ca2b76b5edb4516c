"""Templates and filled trees, against trees written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from selfdraft.core.recycling import NOTHING, Adjacency, Template
from selfdraft.core.tree import ROOT


def adjacency(edges: dict[int, list[int]], width: int = 3, vocabulary: int = 100) -> Adjacency:
    made = Adjacency(vocabulary, width)
    for token, following in edges.items():
        made.edges[token, : len(following)] = following
    return made


def filled(template: Template, edges: Adjacency, root: int, depth: int = 99) -> tuple[list[int], list[int]]:
    tokens, parents = template.filled(edges, root, depth)
    return tokens.tolist(), parents.tolist()


def test_a_template_is_filled_level_by_level() -> None:
    known = adjacency({1: [2, 3, 4], 2: [5, 6], 3: [7], 5: [8]})
    #  root: 2 3 4;  under 2: 5 6, under 3: 7;  under 5: 8
    template = Template.of([3, 2, 1, 0, 1])
    assert len(template) == 7
    assert filled(template, known, 1) == ([2, 3, 4, 5, 6, 7, 8], [ROOT, ROOT, ROOT, 0, 0, 1, 3])
    assert filled(template, known, 1, depth=2) == ([2, 3, 4, 5, 6, 7], [ROOT, ROOT, ROOT, 0, 0, 1])
    assert filled(template, known, 1, depth=0) == ([], [])


def test_an_unknown_edge_leaves_out_its_subtree() -> None:
    known = adjacency({1: [2, 3], 3: [7, 9], 7: [4]})  # nothing follows the 2, and the root has no third
    assert filled(Template.of([3, 2, 2, 1, 0, 0, 1]), known, 1) == ([2, 3, 7, 9, 4], [ROOT, ROOT, 1, 1, 2])
    assert filled(Template.of([3, 1]), known, 50) == ([], [])


def test_the_last_token_id_is_not_taken_for_an_unknown_edge() -> None:
    known = adjacency({1: [99], 99: [5]}, vocabulary=100)
    known.edges[99, 0] = 5
    assert filled(Template.of([2, 1, 1]), known, 1) == ([99, 5], [ROOT, 0])


def test_the_best_template_is_a_chain_if_one_edge_is_always_right() -> None:
    assert [len(level) for level in Template.likeliest([1.0, 0.0], 5, depth=9).parents] == [1] * 5
    assert [len(level) for level in Template.likeliest([1.0, 0.0], 5, depth=3).parents] == [1] * 3
    # 0.6, 0.36, 0.3, 0.216, 0.18 twice
    template = Template.likeliest([0.6, 0.3], 6, depth=9)
    assert [level.tolist() for level in template.parents] == [[0, 0], [0, 0, 1], [0]]
    assert [level.tolist() for level in template.ranks] == [[0, 1], [0, 1, 0], [0]]
    assert len(Template.likeliest([0.4, 0.2, 0.1], 80, depth=6)) == 80


@pytest.mark.parametrize("children", [[1, 1, 1, 0, 5], [0, 3], [2, 0, 0, 1]])
def test_a_template_with_children_of_missing_nodes_is_refused(children: list[int]) -> None:
    with pytest.raises(ValueError, match="nodes that it does not have"):
        Template.of(children)


def test_seeds_go_to_the_front_without_duplicates() -> None:
    known = Adjacency(10, 3)
    known.seed([1, 2, 1, 3, 1, 2, 1, 4, 1, 5])
    assert known.edges[1].tolist() == [5, 4, 2]
    assert known.edges[2].tolist() == [1, NOTHING, NOTHING]
    assert known.edges[7].tolist() == [NOTHING] * 3


def test_an_update_replaces_edges_and_the_last_row_of_a_token_counts() -> None:
    known = adjacency({1: [2, 3, 4]}, vocabulary=10)
    known.update(np.array([1, 5, 1]), np.array([[7, 8, 9], [1, 2, 3], [4, 5, 6]]))
    assert known.edges[1].tolist() == [4, 5, 6]
    assert known.edges[5].tolist() == [1, 2, 3]
