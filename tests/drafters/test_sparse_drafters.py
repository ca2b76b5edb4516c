"""Drafters that run a part of the model token by token, on targets whose texts are known by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from made import made
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.lengths import LEAVES_GREEDY, LEAVES_SAMPLED
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.drafters.presets import configured
from selfdraft.drafters.siblings import MOST_RIVALS, siblings_of
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from stub_target import StubTarget, successor

ROOMY = 100


def begin(config: DrafterConfig, prompt: Sequence[int], target: StubTarget | Target) -> tuple[Drafter, Context]:
    drafter = made(target, config)
    context = Context(0, list(prompt), len(prompt), ROOMY, np.random.default_rng(0))
    target.allocate(1, 0)
    target.cache.reserve(200)
    target.prefill(0, list(prompt)[:-1])
    drafter.start(context)
    return drafter, context


# siblings


@pytest.mark.parametrize("sure", [True, False])
def test_less_certain_nodes_get_more_siblings(sure: bool) -> None:
    target = StubTarget(successor, unsure=lambda text: not sure)
    drafter, context = begin(configured("layer_skip", draft_length=2, siblings=True), [5, 6], target)
    tree = drafter.propose(context).tree
    children = 1 + LEAVES_GREEDY[0 if sure else 3]
    assert tree.tokens[:2].tolist() == [7, 8] and tree.parents[:2].tolist() == [ROOT, 0]
    assert len(tree) == 2 * children
    for parent, token in ((ROOT, 7), (0, 8)):
        mine = tree.tokens[tree.parents == parent].tolist()
        assert len(set(mine)) == children and mine[0] == token


@pytest.mark.parametrize(("cost", "children"), [(0.001, 1 + MOST_RIVALS), (0.9, 0)])
def test_expected_gain_decides_the_number_of_siblings(cost: float, children: int) -> None:
    """Of a draft that is unsure of every token alike; its best token is not verified either where that does not pay."""
    target = StubTarget(successor, unsure=lambda text: True)
    target.costs = CostCurve((1, 64), (1.0, 1.0 + 63 * cost))
    drafter, context = begin(configured("layer_skip", draft_length=1, siblings=True, length="gain"), [5, 6], target)
    tree = drafter.propose(context).tree
    assert len(tree) == children and set(tree.parents.tolist()) <= {ROOT} and tree.tokens[:1].tolist() in ([], [7])


def test_sampled_siblings_are_drawn_without_replacement() -> None:
    q = torch.tensor([[0.4, 0.3, 0.2, 0.1, 0.0]])
    rule = NextToken(sample=True)
    firsts = np.zeros(5)
    for seed in range(2000):
        context = Context(0, [1], 1, ROOMY, np.random.default_rng(seed), rule)
        tokens, left = siblings_of(context, q, 1, 2)
        firsts[tokens[0]] += 1
        assert len(set(tokens)) == 2 and 1 not in tokens and 4 not in tokens
        torch.testing.assert_close(left[0], torch.tensor([[0.4, 0, 0.2, 0.1, 0]]) / 0.7)
        rest = left[0].clone()
        rest[0, tokens[0]] = 0
        torch.testing.assert_close(left[1], rest / rest.sum())
    np.testing.assert_allclose(firsts / 2000, [4 / 7, 0, 2 / 7, 1 / 7, 0], atol=0.05)


def test_there_are_no_more_siblings_than_possible_tokens() -> None:
    context = Context(0, [1], 1, ROOMY, np.random.default_rng(0), NextToken(sample=True))
    tokens, left = siblings_of(context, torch.tensor([[0.5, 0.5, 0.0]]), 0, LEAVES_SAMPLED[3])
    assert tokens == [1] and len(left) == 1


# vocabulary


def test_a_vocabulary_holds_the_most_frequent_then_the_oldest_tokens() -> None:
    drafter, context = begin(configured("layer_skip", draft_vocabulary=4), [50, 40, 50, 30], StubTarget(successor))
    assert drafter.vocabulary(context) == [50, 30, 40, 0]
    assert made(StubTarget(successor), configured("layer_skip", draft_vocabulary=2)).vocabulary(context) == [
        50,
        30,
    ]


def test_a_warm_vocabulary_counts_tokens_of_other_requests() -> None:
    drafter, context = begin(
        configured("layer_skip", draft_vocabulary=2, warm=True), [50, 40, 50], StubTarget(successor)
    )
    chain = TokenTree.chain([60, 61])
    step = Step(Draft(chain), torch.zeros(3, 64), torch.tensor([60, 61, 60]), (0, 1), (60, 61, 60, 60, 60))
    drafter.observe(context, step)
    other = Context(0, [7], 1, ROOMY, np.random.default_rng(0))
    drafter.start(other)
    assert drafter.vocabulary(other) == [60, 50]


def test_only_tokens_of_a_reduced_vocabulary_are_drafted() -> None:
    target = Target(tiny_model("llama"))
    drafter, context = begin(configured("layer_skip", draft_vocabulary=5, draft_length=8), [90, 80, 70], target)
    drafted = drafter.propose(context).tree.tokens.tolist()
    assert set(drafted) <= {90, 80, 70, 0, 1}


# early_exit


@pytest.mark.parametrize("exit_layer", [4, 9])
def test_an_exit_after_the_last_layer_is_refused(exit_layer: int) -> None:
    with pytest.raises(
        UserError, match=rf"^drafter\.path\.exit_layer={exit_layer}: this model has 4 layers; .* at 1 to 3$"
    ):
        begin(configured("early_exit", exit_layer=exit_layer), [1, 2], StubTarget(successor))


@pytest.mark.parametrize(("bonus", "length"), [("keep", 4), ("forgo", 3)])
def test_the_last_draft_is_left_out_if_the_bonus_token_is_forgone(bonus: str, length: int) -> None:
    drafter, context = begin(configured("early_exit", bonus=bonus), [1, 2], StubTarget(successor))
    draft = drafter.propose(context)
    assert draft.tree.tokens.tolist() == [3, 4, 5, 6][:length]
    assert draft.reuse is not None and draft.reuse.layers == 2
    assert draft.reuse.states[:, 0].tolist() == [2, 3, 4, 5]  # of the tokens that went through the exit's layers


@pytest.mark.parametrize(("early", "kept"), [(0.01, True), (0.9, False)])
def test_the_bonus_is_kept_if_tokens_per_second_rise(early: float, kept: bool) -> None:
    """A sure draft of four: cheap early layers are run once more for a fifth token, expensive ones are not."""
    target = StubTarget(successor)
    target.costs = CostCurve((1, 64), (1.0, 1.1))
    share = {True: early, False: 1 - early}  # of the layers that draft, and of those after them
    target.costs_of = lambda path: CostCurve((1, 64), (share[path.leading > 0], share[path.leading > 0] * 1.1))
    drafter, context = begin(configured("early_exit", bonus="auto"), [1, 2], target)
    assert len(drafter.propose(context).tree) == (4 if kept else 3)


def test_a_shortened_draft_reuses_only_the_states_that_fit() -> None:
    drafter, context = begin(configured("early_exit", bonus="keep", siblings=True), [1, 2], StubTarget(successor))
    draft = drafter.propose(context).up_to_depth(2)
    assert len(draft.reuse.states) == 3  # the root and two nodes; leaves follow


# sparse_kv


def test_the_kept_keys_are_the_sink_the_recent_and_the_most_attended() -> None:
    target = Target(tiny_model("llama"))
    prompt = np.random.default_rng(0).integers(96, size=60).tolist()
    config = configured("sparse_kv", sink=2, recent=10, top_k=3, refresh=2, draft_length=3)
    drafter, context = begin(config, prompt, target)
    drafter.propose(context)
    chosen = drafter.policy.states[context].positions.tolist()
    kept = drafter.policy.keys.positions(0, 0).tolist()
    assert len(chosen) == 3 and all(2 <= i < 49 for i in chosen)
    assert kept == sorted({0, 1, *range(49, 59), *chosen})
    assert drafter.policy.keys.cache.lengths == [15] and target.cache.lengths == [59]


def test_a_text_within_the_number_of_kept_keys_is_seen_whole() -> None:
    prompt = np.random.default_rng(0).integers(96, size=30).tolist()
    plain, context = begin(configured("layer_skip", sparsity=0.0, draft_length=6), prompt, Target(tiny_model("llama")))
    expected = plain.propose(context).tree.tokens.tolist()
    for options in ({"sink": 4, "recent": 26}, {"sink": 5, "recent": 10, "top_k": 14}):
        config = configured("sparse_kv", draft_length=6, refresh=1, **options)
        drafter, context = begin(config, prompt, Target(tiny_model("llama")))
        assert drafter.propose(context).tree.tokens.tolist() == expected


# sparse_jacobi


@pytest.mark.parametrize("refine_steps", [1, 2, 4])
def test_each_refinement_fixes_one_more_token_of_the_sparse_model_s_chain(refine_steps: int) -> None:
    target = StubTarget(lambda text: text[-1] + 2, successor)
    config = configured("sparse_jacobi", window=4, refine_steps=refine_steps)
    drafter, context = begin(config, [1, 2], target)
    draft = drafter.propose(context)
    assert draft.tree.tokens.tolist()[:refine_steps] == [3, 4, 5, 6][:refine_steps]
    assert draft.source == "sparse_jacobi" and draft.target_forwards == target.forwards == 0
    assert {path for path, _, _ in target.drafted} == {
        drafter.policy.typical
    } and drafter.policy.typical is not target.full


def test_sparse_jacobi_is_never_fused() -> None:
    with pytest.raises(UserError, match=r"^drafter/path=layer_skip cannot verify, .*: use drafter\.mode=literal$"):
        configured("sparse_jacobi", mode="fused")


# dynamic_exit


def test_exit_and_length_give_the_most_tokens_per_layer() -> None:
    target = StubTarget(successor)
    drafter, context = begin(configured("dynamic_exit", stride=1, draft_length=5), [1, 2], target)
    policy, shadow = drafter.policy, drafter.policy.states[context]
    for right, exit_layer, length in (([1.0, 1.0, 1.0], 1, 5), ([0.0, 0.0, 1.0], 3, 5), ([0.0, 0.0, 0.0], None, 0)):
        shadow.right, shadow.counted = np.array(right), np.ones(1)
        policy._choose(shadow)
        assert policy.longest(context) == length
        if exit_layer is not None:
            assert policy.path(context).skip.attention == frozenset(range(exit_layer, 4))


def test_exit_agreement_is_counted_at_accepted_nodes_with_decay() -> None:
    target = StubTarget(successor, successor)
    drafter, context = begin(configured("dynamic_exit", stride=1, interval=1, decay=0.5), [1, 2], target)
    chain = TokenTree.chain([3, 4])
    states = torch.tensor([3, 9, 5])[None, :, None].expand(5, 3, 1)  # right after the root, wrong after the first node
    context.tokens += [3, 7]
    before = drafter.policy.states[context].right.copy()
    drafter.observe(
        context, Step(Draft(chain), torch.zeros(3, 64), torch.tensor([3, 7, 5]), (0,), (3, 7), None, states)
    )
    np.testing.assert_allclose(drafter.policy.states[context].right, (before * 0.5 + 1) * 0.5)
    np.testing.assert_allclose(drafter.policy.states[context].counted, (0.5 + 1) * 0.5 + 1)
