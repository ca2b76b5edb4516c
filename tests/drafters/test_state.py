"""Drafters that keep state (suffix, recycling, pool): what they store, for how long, and what they draft from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from made import made
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.predictions import best_tokens
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.drafters.pool import PoolConfig
from selfdraft.drafters.prompt_lookup import PromptLookupConfig
from selfdraft.drafters.recycling import RecyclingConfig
from selfdraft.drafters.suffix import SuffixConfig
from stub_target import StubTarget, cycle, successor

FLAT_SUFFIX = SuffixConfig(costs="flat", min_probability=0.0)
FLAT_POOL = PoolConfig(costs="flat", min_probability=0.0)


def begin(config: DrafterConfig, prompt: Sequence[int], drafter: Drafter | None = None) -> tuple[Drafter, Context]:
    drafter = drafter or made(StubTarget(successor), config)
    context = Context(0, list(prompt), len(prompt), 100, np.random.default_rng(0))
    drafter.start(context)
    return drafter, context


def branches(tree: TokenTree) -> set[tuple[int, ...]]:
    """Every node, as the tokens that lead to it."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        paths.append((*(() if parent == ROOT else paths[parent]), token))
    assert len(set(paths)) == len(paths)  # no node twice
    return set(paths)


def step(drafter: Drafter, context: Context, tree: TokenTree, best: Sequence[Sequence[int]]) -> None:
    """One step as the loop makes it: at the root and at every node these tokens are best, the first one by far."""
    logits = torch.zeros(len(tree) + 1, 64)
    for row, tokens in enumerate(best):
        for rank, token in enumerate(tokens):
            logits[row, token] = 9.0 if rank == 0 else 8.5 - rank
    predictions = logits.argmax(-1)
    path: list[int] = []
    while True:
        node = path[-1] if path else ROOT
        token = int(predictions[node + 1])
        following = [i for i in range(len(tree)) if int(tree.parents[i]) == node and int(tree.tokens[i]) == token]
        if not following:
            break
        path += following
    emitted = (*(int(tree.tokens[i]) for i in path), token)
    context.tokens += emitted
    context.room -= len(emitted)
    best = best_tokens(logits, drafter.best) if drafter.best else None
    drafter.observe(context, Step(Draft(tree), logits, predictions, tuple(path), emitted, best=best))


# suffix


def test_suffix_drafts_continuations_of_the_longest_and_of_shorter_matches() -> None:
    text = [1, 2, 3, 4, 5, 9, 3, 7, 8, 1, 2, 3]
    drafter, context = begin(FLAT_SUFFIX, text)
    tree = drafter.propose(context).tree
    found = branches(tree)
    assert (4, 5, 9) in found and (7, 8) in found
    assert int(tree.tokens[0]) == 4  # the longest match is the surest


def test_suffix_matches_have_no_maximum_length() -> None:
    """Of two occurrences that agree in their last forty tokens, the one that agrees in the token before."""
    same = list(range(20, 60))
    text = [1, *same, 5, 2, *same, 6, 7, 1, *same]
    drafter, context = begin(SuffixConfig(costs="flat", branches=1), text)
    assert int(drafter.propose(context).tree.tokens[0]) == 5


def test_suffix_with_one_branch_drafts_a_chain_within_its_limits() -> None:
    text = [1, 2, 3, 4, 5, 1, 6, 7, 1]
    drafter, context = begin(SuffixConfig(costs="flat", branches=1, max_nodes=3, min_probability=0.0), text)
    tree = drafter.propose(context).tree
    assert tree.is_chain and len(tree) == 3
    drafter, context = begin(SuffixConfig(costs="flat", min_probability=0.9), text)
    assert len(drafter.propose(context).tree) == 0


# recycling


def test_recycling_drafts_what_was_predicted_at_rejected_nodes() -> None:
    drafter, context = begin(RecyclingConfig(edges=2, template=[2, 1], seed_from_prompt=False), [1, 2])
    assert len(drafter.propose(context).tree) == 0  # nothing is known
    step(drafter, context, TokenTree.chain([30, 31]), [[5, 6], [40, 41], [42, 43]])  # 30 is rejected: 5 follows the 2
    context.tokens.append(30)  # a token that never followed this text before
    assert branches(drafter.propose(context).tree) == {(40,), (41,)}
    context.tokens.append(2)
    assert branches(drafter.propose(context).tree) == {(5,), (6,)}


def test_of_two_nodes_with_one_token_recycling_keeps_the_accepted_one_s_edges() -> None:
    drafter, context = begin(RecyclingConfig(edges=1, template=[1]), [1])
    tree = TokenTree(torch.tensor([5, 8, 5]), torch.tensor([ROOT, ROOT, 1]), torch.ones(3, dtype=torch.bool))
    step(drafter, context, tree, [[5], [20], [21], [22]])
    context.tokens.append(5)
    assert branches(drafter.propose(context).tree) == {(20,)}


def test_recycling_learns_edges_from_the_prompt_unless_switched_off() -> None:
    text = [1, 2, 1, 3, 1]
    drafter, context = begin(RecyclingConfig(), text)
    assert branches(drafter.propose(context).tree) >= {(3,), (2,)}
    drafter, context = begin(RecyclingConfig(seed_from_prompt=False), text)
    assert len(drafter.propose(context).tree) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": [9]}, r"^drafter\.template=\[9\]: at most drafter\.edges=8 children each$"),
        ({"template": [1, 0, 2]}, r"^drafter\.template=\[1, 0, 2\]: it gives children to nodes that it does not have$"),
        ({"template": [-1]}, r"^drafter\.template=-1: must be at least 0$"),
    ],
)
def test_recycling_refuses_invalid_templates(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RecyclingConfig(**options)


# pool


def test_pool_merges_its_sources_into_one_tree_and_names_them() -> None:
    drafter, context = begin(FLAT_POOL, [7, 8, 9, 4, 7, 8])
    for best in ([9, 20], [4, 21], [7, 22], [8, 23]):  # after 4 7 8 comes 9, and 20 would be next best; and so on
        drafter.propose(context)
        step(drafter, context, TokenTree.empty(), [best])
    draft = drafter.propose(context)
    found = branches(draft.tree)
    assert (9, 4) in found  # said before, and predicted before: one node
    assert (20,) in found  # predicted only
    by_token = dict(zip(draft.tree.tokens.tolist(), draft.sources, strict=True))
    assert len(draft.sources) == len(draft.tree)
    assert by_token[20] == "trajectory"
    assert set(draft.sources) <= {"suffix", "trajectory", "recycling"}


@pytest.mark.parametrize("source", ["suffix", "trajectory", "recycling"])
def test_a_pool_of_one_source_records_only_that_source(source: str) -> None:
    drafter = made(StubTarget(cycle(5)), PoolConfig(sources=[source], costs="flat"))
    generation = Decoder(drafter.target, drafter, Stopping(frozenset(), 40)).decode([1, 2, 3])
    _, context = begin(FLAT_POOL, [1, 2, 3])
    drafter.start(context)
    assert generation.counts.target_forwards < 40  # each source by itself saves forwards
    for _ in range(6):
        draft = drafter.propose(context)
        assert set(draft.sources) <= {source}
        best = [[token % 5 + 1] for token in (context.tokens[-1], *draft.tree.tokens.tolist())]
        step(drafter, context, draft.tree, best)
    assert len(draft.tree)


def test_a_pool_drafts_less_after_wrong_guesses() -> None:
    """A text in which the 1 is always followed by something new: drafts after it become less and less likely."""
    costs = CostCurve((1, 64), (1.0, 20.0))
    target = StubTarget(successor)
    target.costs = costs
    drafter = made(target, PoolConfig(sources=["suffix"]))
    _, context = begin(FLAT_POOL, [1, 30, 1, 30, 1, 30, 1])
    drafter.start(context)
    sizes = []
    for surprise in range(31, 60):
        draft = drafter.propose(context)
        sizes.append(len(draft.tree))
        step(drafter, context, draft.tree, [[surprise]] + [[63]] * len(draft.tree))
        context.tokens += [1, 30, 1, 30, 1]
    assert sizes[0] > 0 and sizes[-1] == 0


def test_a_pool_drafts_less_if_tokens_cost_more() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8] * 3
    sizes = []
    for last in (1.001, 2.0, 10.0, 1000.0):
        target = StubTarget(successor)
        target.costs = CostCurve((1, 64), (1.0, last))
        drafter = made(target, PoolConfig(min_probability=0.0))
        sizes.append(len(drafter.propose(begin(FLAT_POOL, text, drafter)[1]).tree))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 0


def test_a_pool_observes_the_part_of_its_tree_that_was_verified() -> None:
    """The loop cuts trees for targets that take chains only, and drafts that are deeper than it can emit."""
    drafter, context = begin(FLAT_POOL, [1, 2, 9, 1, 3, 8, 1])
    draft = drafter.propose(context)
    first = draft.restricted_to(draft.tree.first_branch())
    assert len(first.tree) < len(draft.tree) and len(first.sources) == len(first.tree)
    step(drafter, context, first.tree, [[int(first.tree.tokens[0])]] + [[40, 41]] * len(first.tree))
    last_two = tuple(
        first.tree.tokens[-2:].tolist()
    )  # each node's own context, not that of its place in the whole tree
    ((length, predicted), *_) = drafter.states[context].table.after(last_two)
    assert length == 2 and [token for token, _ in predicted][:2] == [40, 41]
    assert len(drafter.propose(context).tree)


# warm and cold

WARM = [SuffixConfig, RecyclingConfig, PoolConfig]


@pytest.mark.parametrize("make", WARM)
def test_a_warm_drafter_remembers_and_a_cold_one_does_not(make: type[DrafterConfig]) -> None:
    forwards = {}
    for warm in (False, True):
        target = StubTarget(cycle(23))
        drafter = made(target, make(warm=warm))
        decoder = Decoder(target, drafter, Stopping(frozenset(), 20))
        forwards[warm] = [decoder.decode([1, 2]).counts.target_forwards for _ in range(2)]
        assert drafter.config.state == ("warm" if warm else "cold")
    assert forwards[False][0] == forwards[False][1] == forwards[True][0] == 20  # nothing is said twice in one answer
    assert forwards[True][1] < 12
    assert DrafterConfig().state == "none"


@pytest.mark.parametrize("make", WARM)
def test_requests_of_a_warm_drafter_can_run_side_by_side(make: type[DrafterConfig]) -> None:
    target = StubTarget(cycle(7))
    drafter = made(target, make(warm=True))
    contexts = [begin(make(), [1 + i, 2 + i], drafter)[1] for i in range(3)]
    for _ in range(6):
        for context in contexts:
            tree = drafter.propose(context).tree
            best = [[token % 7 + 1] for token in (context.tokens[-1], *tree.tokens.tolist())]
            step(drafter, context, tree, best)
    for i, context in enumerate(contexts):
        assert context.tokens == [(i + at) % 7 + 1 for at in range(len(context.tokens))]


@pytest.mark.parametrize(
    "config",
    [RecyclingConfig(warm=True), PoolConfig(warm=True, sources=["recycling"], costs="flat", min_probability=0.0)],
    ids=lambda config: config.name,
)
def test_one_request_does_not_undo_what_another_has_learned(config: DrafterConfig) -> None:
    drafter, mine = begin(config, [5])
    _, other = begin(config, [5], drafter)
    step(drafter, mine, TokenTree.empty(), [[20, 21]])
    step(drafter, other, TokenTree.empty(), [[30, 31]])
    _, later = begin(config, [5], drafter)
    for context, following in ((mine, 20), (other, 30), (later, 30)):
        context.tokens.append(5)
        assert int(drafter.propose(context).tree.tokens[0]) == following


# batches


@pytest.mark.parametrize("config", [SuffixConfig(), PoolConfig(), PromptLookupConfig()], ids=lambda config: config.name)
def test_in_a_batch_a_request_drafts_what_its_share_of_the_cost_allows(config: DrafterConfig) -> None:
    """8 tokens cost what one does, every further one as much again: two rows leave each other 3 guesses."""
    target, size = StubTarget(cycle(12)), {}
    target.costs = CostCurve((1, 8, 16), (1.0, 1.0, 9.0))
    drafter = made(target, config)
    for rows in (1, 2, 8):
        decoder = Decoder(target, drafter, Stopping(frozenset(), 30), batch_size=rows)
        target.seen.clear()
        done = decoder.answer([Request([*range(1, 13)] * 3)] * rows)
        assert all(generation.ended for generation in done)
        size[rows] = max(len(tree) for rows_of, trees in target.seen if len(rows_of) == rows for tree in trees)
    assert size == {1: 7, 2: 3, 8: 0}
