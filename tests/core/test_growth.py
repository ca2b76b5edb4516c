"""Best-first growth against all trees of a size, and the best size, worked out by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest

from naming import naming
from selfdraft.core.costs import CostCurve
from selfdraft.core.growth import Growth, best_probed, best_size, grow, paying_lengths
from selfdraft.core.tree import ROOT

CHANCES = {1: 0.6, 2: 0.3, 3: 0.1}


def alike(node: int, parent: int, token: int) -> list[tuple[int, float]]:
    """The same three tokens after every node."""
    return list(CHANCES.items())


def paths(growth: Growth) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(growth.tokens, growth.parents, strict=True):
        found.append((*(() if parent == ROOT else found[parent]), token))
    return found


def test_every_prefix_of_the_growth_is_the_best_tree_of_its_size() -> None:
    growth = grow(alike, nodes=30, depth=4)
    everything = [path for n in (1, 2, 3, 4) for path in itertools.product(CHANCES, repeat=n)]
    worth = dict.fromkeys(everything, 1.0)
    for path in everything:
        for token in path:
            worth[path] *= CHANCES[token]
    assert growth.probabilities == pytest.approx(sorted(worth.values(), reverse=True)[:30])
    assert len(set(paths(growth))) == 30
    assert [worth[path] for path in paths(growth)] == pytest.approx(growth.probabilities)
    tree = growth.tree(12)
    placed = paths(Growth(tree.tokens.tolist(), tree.parents.tolist()))
    assert sorted(placed) == sorted(paths(growth)[:12])


def test_the_most_likely_branch_comes_first_and_branches_are_contiguous() -> None:
    growth = Growth([1, 2, 3, 4, 5, 6, 7], [ROOT, ROOT, 0, 1, 2, 0, 2], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    assert growth.order(7) == [0, 2, 4, 6, 5, 1, 3]
    assert growth.order(4) == [0, 2, 1, 3]
    tree = growth.tree(7)
    assert tree.tokens.tolist() == [1, 3, 5, 7, 6, 2, 4]
    assert tree.parents.tolist() == [ROOT, 0, 1, 1, 0, ROOT, 5]
    assert growth.order(0) == []


def test_growth_respects_its_limits() -> None:
    assert max(map(len, paths(grow(alike, nodes=30, depth=2)))) == 2
    assert len(grow(alike, nodes=5, depth=9).tokens) == 5
    assert grow(alike, nodes=100, depth=9, least=0.2).probabilities == pytest.approx([0.6, 0.36, 0.3, 0.216])
    assert grow(alike, nodes=5, depth=0).tokens == []
    assert len(grow(lambda *_: [], nodes=5, depth=5).tree(0)) == 0


def test_equally_probable_tokens_keep_their_order() -> None:
    growth = grow(lambda node, parent, token: [(7, 0.5), (4, 0.5)] if node == ROOT else [], nodes=5, depth=3)
    assert growth.tokens == [7, 4]


def test_expand_gets_node_parent_and_token() -> None:
    seen: list[tuple[int, int, int]] = []

    def expand(node: int, parent: int, token: int) -> list[tuple[int, float]]:
        seen.append((node, parent, token))
        return [(token + 10, 0.5)]

    grow(expand, nodes=2, depth=5)
    assert seen == [(ROOT, ROOT, ROOT), (0, ROOT, 9), (1, 0, 19)]


@pytest.mark.parametrize(
    ("probabilities", "seconds", "size"),
    [
        ([0.9, 0.8, 0.1], (1.0, 1.0), 3),  # tokens cost nothing: all
        ([0.9, 0.8, 0.1], (1.0, 4.0), 0),  # a token costs a forward: none
        ([0.9, 0.8, 0.1], (1.0, 1.9), 2),  # 1.9 / 1.3, 2.7 / 1.6, 2.8 / 1.9
        ([0.25], (1.0, 1.9), 0),  # 1.25 for 1.3
        ([0.35, 0.35], (1.0, 1.9), 2),  # 1.35 for 1.3, 1.7 for 1.6
        ([], (1.0, 1.9), 0),
    ],
)
def test_the_best_tree_size_gives_the_most_tokens_per_second(
    probabilities: list[float], seconds: tuple[float, float], size: int
) -> None:
    assert best_size(probabilities, CostCurve((1, 4), seconds)) == size


def test_the_best_combination_of_nodes_and_probes_is_chosen() -> None:
    """Against every size with every set of ends, by enumerating where acceptance ends."""
    for cost, worth in itertools.product((0.01, 0.05, 0.2, 0.6), (0.0, 0.4, 1.5)):
        with naming(f"a node costs {cost}", f"its probes are worth {worth}"):
            check_best_combination(cost, worth)


def check_best_combination(cost: float, worth: float) -> None:
    growth = grow(alike, nodes=6, depth=3)
    curve = CostCurve((1, 100), (1.0, 1.0 + 99 * cost))

    def rate(size: int, ends: tuple[int, ...]) -> float:
        reached = {ROOT: 1.0} | dict(enumerate(growth.probabilities[:size]))
        left = {n: p - sum(reached[c] for c in range(size) if growth.parents[c] == n) for n, p in reached.items()}
        expected = sum(reached.values()) + worth * sum(left[node] for node in ends)
        return expected / curve(1 + size + 2 * len(ends))

    every = [
        (size, ends)
        for size in range(7)
        for number in range(1, size + 2)
        for ends in itertools.combinations(range(ROOT, size), number)
    ]
    size, ends = best_probed(growth, curve, 2, worth)
    assert rate(size, tuple(ends)) == pytest.approx(max(rate(*choice) for choice in every))


def test_of_each_chain_as_many_tokens_are_drafted_as_pay() -> None:
    sure, unsure = [0.9, 0.8, 0.7], [0.2, 0.05]
    free, dear = (CostCurve((1, 9), (1.0, 1.0)), CostCurve((1, 9), (1.0, 9.0)))
    assert paying_lengths([sure, unsure], free) == [3, 2]
    assert paying_lengths([unsure, sure], free) == [2, 3]
    assert paying_lengths([sure, unsure], dear) == [0, 0]
    some = CostCurve((1, 2, 3, 9), (1.0, 1.2, 1.5, 8.0))
    assert paying_lengths([sure, unsure], some) == [2, 0]
    assert paying_lengths([], free) == []


def by_token(chances: dict[int, list[float]], node: int, parent: int, token: int) -> Iterable[tuple[int, float]]:
    """Other chances after every token."""
    return enumerate(chances[token])


@pytest.mark.parametrize("slope", [0.01, 0.05, 0.3])
def test_growth_that_ends_where_nothing_pays_has_the_same_best_size(slope: float) -> None:
    """With costs that rise with every token, and with costs that rise in steps, as those of padded forwards do."""
    rng, whole, ended = np.random.default_rng(0), 0, 0
    for step in (1, 8):
        seconds = [1 + slope * step * (tokens // step) for tokens in range(1, 34)]
        for _ in range(50):
            chances = {token: sorted(rng.dirichlet(np.full(4, 0.5)), reverse=True) for token in range(-1, 4)}
            grown = [grow(partial(by_token, chances), nodes=32, depth=9, seconds=given) for given in (None, seconds)]
            sizes = [best_size(each.probabilities, CostCurve(tuple(range(1, 34)), tuple(seconds))) for each in grown]
            assert sizes[0] == sizes[1]
            assert grown[1].probabilities == grown[0].probabilities[: len(grown[1].tokens)]
            whole, ended = whole + len(grown[0].tokens), ended + len(grown[1].tokens)
    assert ended < (0.95 if slope < 0.05 else 0.6) * whole
