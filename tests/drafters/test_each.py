"""What is particular to each drafter: its blocks, its matches, its paths and its options."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from by_hand import ROOMY, begin, drafted, observe
from lossless import NEED_WEIGHTS
from made import made
from selfdraft.core.blocks import INITS
from selfdraft.core.errors import UserError
from selfdraft.drafters.base import Context, DrafterConfig
from selfdraft.drafters.jacobi import JacobiConfig
from selfdraft.drafters.presets import PRESETS, configured
from stub_target import Rule, StubTarget, successor

NAMES = [name for name in PRESETS if name not in NEED_WEIGHTS]


def test_none_never_drafts() -> None:
    drafter, context = begin(DrafterConfig(), [1, 2, 1, 2])
    assert drafted(drafter, context) == []


def test_a_drafter_has_the_name_of_its_config() -> None:
    assert [configured(name).label for name in NAMES] == ["layer_skip" if name == "chain" else name for name in NAMES]


def test_no_draft_is_deeper_than_the_remaining_tokens() -> None:
    for name, room in product(NAMES, (0, 1, 2, 3)):
        drafter, context = begin(configured(name), [1, 2, 3, 4, 5, 1], room=room)
        tree = drafter.propose(context).tree
        assert max(tree.depths.tolist(), default=0) <= room, name
        if name in ("jacobi", "layer_skip", "prompt_lookup"):  # which draft deeper than three where they may
            assert len(tree) == room, name


# jacobi

PAD = 63


@pytest.mark.parametrize(
    ("init", "prompt", "block"),
    [
        ("repeat_last", [5, 6, 7], [7, 7, 7, 7]),
        ("previous_tail", [5, 6, 7], [7, 7, 7, 7]),  # there is no tail yet
        ("pad", [5, 6, 7], [PAD] * 4),
        ("ngram", [5, 6, 7, 8, 6], [7, 8, 6, 6]),  # what followed the 6, then its last token repeated
        ("ngram", [5, 6, 7], [7, 7, 7, 7]),  # no match
    ],
)
def test_jacobi_starts_a_block_by_its_init_option(init: str, prompt: list[int], block: list[int]) -> None:
    assert (
        drafted(
            *begin(
                JacobiConfig(window=4, init=init, candidates=1, costs="flat"), prompt, StubTarget(successor, pad_id=PAD)
            )
        )
        == block
    )


def test_jacobi_draws_random_blocks_from_the_prompt_by_the_request_s_seed() -> None:
    config, prompt = JacobiConfig(window=40, init="prompt_random", candidates=1, costs="flat"), [11, 12, 13]

    def block(seed: int) -> list[int]:
        drafter, context = begin(config, prompt, seed=seed)
        context.tokens += [50, 51]  # emitted since
        return drafted(drafter, context)

    assert set(block(0)) == set(prompt)
    assert block(0) == block(0) != block(1)


def test_jacobi_carries_guesses_over_and_pads_the_block() -> None:
    drafter, context = begin(
        JacobiConfig(window=4, refine_steps=9, init="pad", candidates=1, costs="flat"),
        [1, 2],
        StubTarget(successor, pad_id=PAD),
    )
    assert drafted(drafter, context) == [PAD] * 4
    observe(drafter, context, [PAD] * 4, [10, 11, 12, 13, 14])  # none accepted; 10 is committed, the rest are guesses
    assert drafted(drafter, context) == [11, 12, 13, 14]
    observe(drafter, context, [11, 12, 13, 14], [11, 12, 20, 21, 22])  # two are accepted and 20 follows
    assert drafted(drafter, context) == [21, 22, PAD, PAD]
    observe(drafter, context, [21, 22, PAD, PAD], [21, 22, PAD, PAD, 30])  # all are accepted: nothing is left over
    assert drafted(drafter, context) == [PAD] * 4


@pytest.mark.parametrize(("refine_steps", "carried"), [(1, 0), (2, 1), (3, 2)])
def test_jacobi_restarts_after_its_number_of_passes(refine_steps: int, carried: int) -> None:
    drafter, context = begin(
        JacobiConfig(window=2, refine_steps=refine_steps, init="pad", candidates=1, costs="flat"),
        [1],
        StubTarget(successor, pad_id=PAD),
    )
    blocks = []
    for _ in range(2 * (carried + 1)):
        blocks.append(drafted(drafter, context))
        observe(drafter, context, blocks[-1], [40, 41, 42])
    assert blocks == [[PAD] * 2, *[[41, 42]] * carried] * 2


def test_jacobi_with_previous_tail_keeps_its_guesses() -> None:
    drafter, context = begin(
        JacobiConfig(window=3, refine_steps=1, init="previous_tail", candidates=1, costs="flat"), [1]
    )
    block = drafted(drafter, context)
    for _ in range(4):
        observe(drafter, context, block, [40, 41, 42, 43])
        block = drafted(drafter, context)
        assert block == [41, 42, 43]
    observe(drafter, context, block, [41, 42, 50, 51])
    assert drafted(drafter, context) == [51, 51, 51]  # the last guess, repeated


def test_jacobi_in_literal_mode_ignores_the_predictions_of_the_verification() -> None:
    config = JacobiConfig(window=2, refine_steps=1, init="pad", mode="literal")
    drafter, context = begin(config, [1], StubTarget(successor, pad_id=PAD - 1))
    assert drafted(drafter, context) == [2, PAD]  # one refinement of two fillers, the one after the filler PAD - 1
    observe(drafter, context, [2, PAD], [2, 3, 4])
    assert drafted(drafter, context)[1] == PAD


def successor_then(last: int) -> Rule:
    """Counting up to `last`, which then repeats: a text in which a block comes to rest."""
    return lambda text: min(text[-1] + 1, last)


@pytest.mark.parametrize("refine_steps", [1, 2, 3, 4])
def test_each_refining_forward_of_jacobi_makes_one_more_token_right(refine_steps: int) -> None:
    target = StubTarget(successor, pad_id=40)
    config = JacobiConfig(window=4, refine_steps=refine_steps, init="pad", mode="literal")
    block = drafted(*begin(config, [1], target))
    assert block[:refine_steps] == [2, 3, 4, 5][:refine_steps]
    assert block[refine_steps:] == [40 + refine_steps] * (4 - refine_steps)  # refined as often, from the filler
    assert target.forwards == refine_steps  # the verifying one is the loop's


def test_jacobi_stops_refining_at_the_fixed_point() -> None:
    target = StubTarget(successor_then(3), pad_id=3)
    # From 1 follow 2 3 3 3. The filler is 3 3 3 3: the first forward mends the 2, the second changes nothing.
    config = JacobiConfig(window=4, refine_steps=9, init="pad", mode="literal")
    assert drafted(*begin(config, [1], target)) == [2, 3, 3, 3]
    assert target.forwards == 2


def test_fused_jacobi_needs_no_draft_forward() -> None:
    target = StubTarget(successor)
    drafted(*begin(JacobiConfig(refine_steps=5, candidates=1, costs="flat"), [1, 2, 3], target))
    assert target.forwards == 0 and target.drafted == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "drafter.window=0: must be at least 1"),
        ({"refine_steps": 0}, "drafter.refine_steps=0: must be at least 1"),
        ({"mode": "both"}, "drafter.mode=both: choose one of auto, fused, literal"),
        ({"init": "zeros"}, f"drafter.init=zeros: choose one of {', '.join(INITS)}"),
    ],
)
def test_jacobi_refuses_invalid_options(options: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        JacobiConfig(**options, costs="flat")
    assert str(caught.value) == message


# layer_skip


def test_layer_skip_drafts_the_sparse_path_s_greedy_tokens_one_by_one() -> None:
    # A sparse model that looks at the whole text: its length and its first token, besides the last.
    def sparse(text: Sequence[int]) -> int:
        return (text[0] + len(text) + text[-1]) % 64

    target = StubTarget(successor, sparse)
    drafter, context = begin(configured("layer_skip", draft_length=3), [7, 1, 2], target)
    text = [7, 1, 2]
    for _ in range(3):
        text.append(sparse(text))
    assert drafted(drafter, context) == text[3:]
    assert [(rows, offset) for _, rows, offset in target.drafted] == [([0], 0), ([0], 1), ([0], 2)]
    assert {path for path, _, _ in target.drafted} == {
        drafter.policy.typical
    } and drafter.policy.typical is not target.full
    assert target.forwards == 0  # sparse forwards are no target forwards


@pytest.mark.parametrize(("sure_below", "length"), [(0, 1), (3, 2), (4, 3), (99, 6)])
def test_layer_skip_stops_after_the_first_token_below_the_threshold(sure_below: int, length: int) -> None:
    """After it, not before: the token was drafted already, and costs the verification little."""
    target = StubTarget(successor, successor, unsure=lambda text: text[-1] >= sure_below)
    confident = configured("layer_skip", draft_length=6, min_confidence=0.5)
    assert drafted(*begin(confident, [2], target)) == [3, 4, 5, 6, 7, 8][:length]
    assert len(target.drafted) == length
    assert drafted(*begin(configured("layer_skip", draft_length=6), [2], target)) == [3, 4, 5, 6, 7, 8]


def test_layer_skip_drafts_all_unfinished_rows_of_a_batch_together() -> None:
    target = StubTarget(successor, successor, unsure=lambda text: text[-1] == 31)
    drafter = made(target, configured("layer_skip", draft_length=4, min_confidence=0.5))
    target.allocate(4, 0)
    contexts = [
        Context(row, [first], 1, room, np.random.default_rng(0))
        for row, (first, room) in enumerate([(10, ROOMY), (20, 2), (30, ROOMY), (40, 0)])
    ]
    for context in contexts:
        drafter.start(context)
    drafts = [draft.tree.tokens.tolist() for draft in drafter.propose_batch(contexts)]
    assert drafts == [[11, 12, 13, 14], [21, 22], [31, 32], []]
    assert [(rows, offset) for _, rows, offset in target.drafted] == [
        ([0, 1, 2], 0),
        ([0, 1, 2], 1),
        ([0], 2),
        ([0], 3),
    ]


@pytest.mark.parametrize(
    ("options", "attention", "mlp"),
    [
        ({"skip_attention": [1, 2]}, {1, 2}, set()),  # naming one kind leaves the other whole, sparsity or not
        ({"skip_mlp": [3], "sparsity": 0.9}, set(), {3}),
        ({"skip_attention": [0], "skip_mlp": [0, 3]}, {0}, {0, 3}),
        ({"skip_attention": []}, set(), set()),
        ({"sparsity": 0.0}, set(), set()),
    ],
)
def test_layer_skip_skips_the_named_sublayers(options: dict, attention: set[int], mlp: set[int]) -> None:
    path = begin(configured("layer_skip", **options), [1])[0].policy.typical
    assert (path.skip.attention, path.skip.mlp) == (attention, mlp)


def test_layer_skip_by_sparsity_keeps_the_first_and_the_last_layer() -> None:
    path = begin(configured("layer_skip", sparsity=0.75), [1])[0].policy.typical
    assert len(path.skip) == 3 and path.skip.attention | path.skip.mlp == {1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_mlp": [99]}, r"^drafter\.path\.skip_mlp=\[99\]: this model's layers are 0 to 3$"),
        ({"skip_attention": [-1]}, r"^drafter\.path\.skip_attention=-1: must be at least 0$"),
        ({"sparsity": 1.2}, r"^drafter\.path\.sparsity=1\.2: must be below 1\.0$"),
        ({"draft_length": 0}, r"^drafter\.draft_length=0: must be at least 1$"),
        ({"min_confidence": 1.1}, r"^drafter\.min_confidence=1\.1: must be at most 1\.0$"),
    ],
)
def test_layer_skip_refuses_layers_that_the_model_lacks(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        begin(configured("layer_skip", **options), [1])
