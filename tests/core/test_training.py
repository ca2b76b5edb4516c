"""Blocks of positions to train on, losses over them, and the acceptance that drafts would have."""

import pytest
import torch

from selfdraft.core.training import (
    blocks_from,
    blocks_of,
    chain_counts,
    divergence,
    early_layer,
    expected_accepted,
    layer_dropout,
    missed_acceptance,
    wanted_positions,
)

TEXTS = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, -1], [0, 0, 0, -1, -1, -1, -1, -1, -1, -1]])
ANSWERS = torch.tensor([[0, 0, 1, 1, 1, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]]).bool()


def test_wanted_positions_are_followed_by_a_token_of_the_same_text() -> None:
    everything = wanted_positions(TEXTS, ANSWERS, answers_only=False)
    assert everything[0].tolist() == [True] * 4 + [False] + [True] * 3 + [False] * 2
    assert everything[1].tolist() == [True, True] + [False] * 8
    answers = wanted_positions(TEXTS, ANSWERS, answers_only=True)
    assert answers[0].tolist() == [False, True, True, True, False, True, True, True, False, False]


def test_blocks_begin_at_wanted_positions_and_end_with_their_text() -> None:
    wanted = wanted_positions(TEXTS, ANSWERS, answers_only=False)
    blocks = blocks_of(TEXTS, wanted, size=3, stride=3, offset=0)
    for row in range(2):
        for index, valid in zip(blocks.index[row].tolist(), blocks.valid[row].tolist(), strict=True):
            assert index == list(range(index[0], index[0] + 3))
            counted = [place for place, counts in zip(index, valid, strict=True) if counts]
            assert counted == index[: len(counted)]  # nothing counts after the first that does not
            assert all(wanted[row, place] and TEXTS[row, place] == TEXTS[row, index[0]] for place in counted)
    assert int(blocks.valid[0].sum()) == 3 + 1 + 2  # 0-2; 3; 6-7


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_no_position_is_trained_twice(offset: int) -> None:
    blocks = blocks_of(TEXTS, wanted_positions(TEXTS, ANSWERS, answers_only=False), size=3, stride=3, offset=offset)
    places = [blocks.index[row][blocks.valid[row]].tolist() for row in range(2)]
    assert all(len(row) == len(set(row)) for row in places) and len(places[0]) > 0  # at offset 2 the other has none


def test_gathered_values_are_those_at_the_positions() -> None:
    blocks = blocks_of(TEXTS, wanted_positions(TEXTS, ANSWERS, answers_only=False), size=2, stride=3, offset=1)
    values = torch.arange(20.0).view(2, 10)[..., None].expand(-1, -1, 4)
    assert torch.equal(blocks.gathered(values)[..., 0].view(2, -1, 2), blocks.index + torch.tensor([[[0]], [[10]]]))


def test_the_value_before_a_block_goes_to_its_first_position_within_one_text() -> None:
    texts = torch.tensor([[0, 0, 0, 1, 1, 1]])
    blocks = blocks_of(texts, wanted_positions(texts, texts >= 0, answers_only=False), size=2, stride=1, offset=0)
    values = torch.arange(1.0, 7.0).view(1, 6, 1).expand(-1, -1, 3)
    before = blocks.before(values, texts)[0].view(-1, 2, 3)
    found = {int(index[0]): value[:, 0].tolist() for index, value in zip(blocks.index[0], before, strict=True)}
    # Place 0 and place 3 begin a text; the value of place i is i + 1.
    assert found == {0: [0.0, 0.0], 1: [1.0, 0.0], 3: [0.0, 0.0], 4: [4.0, 0.0]}


def test_a_chain_is_accepted_up_to_its_first_wrong_token() -> None:
    right = torch.tensor([[[1, 1, 0], [0, 1, 1]], [[1, 0, 1], [1, 1, 1]]]).bool()
    valid = torch.tensor([[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 0]]]).bool()
    counts = chain_counts(right, valid)
    assert counts.tolist() == [[4, 3], [3, 2], [1, 0]]
    assert expected_accepted(counts) == pytest.approx(3 / 4 + 3 / 4 * 2 / 3)
    assert expected_accepted(torch.zeros(3, 2)) == 0.0


def test_divergence_is_zero_only_for_equal_distributions() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert divergence(logits, logits).abs().max() < 1e-6
    p, q = logits.softmax(-1), logits.flip(0).softmax(-1)
    assert torch.allclose(divergence(logits.flip(0), logits), (p * (p / q).log()).sum(-1), atol=1e-5)


def test_missed_acceptance_is_what_rejection_sampling_rejects_once_most_is_accepted() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 7, generator=generator)
    student = teacher + 0.1 * torch.randn(5, 7, generator=generator)
    missed = 1 - torch.minimum(student.softmax(-1), teacher.softmax(-1)).sum(-1)
    weight = torch.exp(-3 * (1 - missed))
    expected = weight * divergence(student, teacher) + (1 - weight) * missed
    assert torch.allclose(missed_acceptance(student, teacher), expected) and bool((weight < 0.07).all())
    assert torch.allclose(missed_acceptance(teacher + 3.0, teacher), torch.zeros(5), atol=1e-6)
    never = torch.tensor([[100.0, 0.0]], requires_grad=True)
    missed_acceptance(never, torch.tensor([[0.0, 100.0]])).sum().backward()
    assert never.grad is not None and float(never.grad.abs().max()) > 0.5  # acceptance itself has no slope there


def test_blocks_from_given_positions_count_as_those_of_a_stride() -> None:
    wanted = wanted_positions(TEXTS, ANSWERS, answers_only=False)
    strided = blocks_of(TEXTS, wanted, size=3, stride=3, offset=0)
    given = blocks_from(strided.index[..., 0], TEXTS, wanted, 3)
    assert torch.equal(given.index, strided.index) and torch.equal(given.valid, strided.valid)
    late = blocks_from(torch.tensor([[8], [2]]), TEXTS, wanted, 3)  # at the ends of a row and of a text
    assert late.index.max() <= 9 and not late.valid.any()


def test_later_layers_are_dropped_more_often() -> None:
    rates = layer_dropout(5, 0.2)
    assert rates == sorted(rates) and rates[0] == 0.0 and rates[-1] == pytest.approx(0.2)
    assert layer_dropout(5, 0.0) == [0.0] * 5


def test_curricula_visit_every_layer_but_the_last() -> None:
    assert {early_layer("rotational", 4, step, 100) for step in range(9)} == {0, 1, 2}
    gradual = [early_layer("gradual", 4, step, 120) for step in range(120)]
    assert gradual[0] == 2 and set(gradual[:15]) == {2} and set(gradual[60:]) == {0, 1, 2}
    assert early_layer("none", 4, 7, 100) is None and early_layer("rotational", 1, 7, 100) is None
