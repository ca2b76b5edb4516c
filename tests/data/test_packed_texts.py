"""Packing: no token is lost or doubled, padding is little, and every token keeps its text and position."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from selfdraft.core.errors import UserError
from selfdraft.data.distilled import Text
from selfdraft.data.packing import PackedBatch, collate, pack
from selfdraft.data.textmodule import EpochOrder, TextDataModule


def random_texts(count: int, seed: int = 0, longest: int = 60) -> list[Text]:
    """Texts whose answer tokens are all different; prompts are negative numbers."""
    rng, fresh = random.Random(seed), iter(range(1, 10**6))
    return [
        Text(str(i), [-1] * rng.randint(1, 30), [next(fresh) for _ in range(rng.randint(1, longest))])
        for i in range(count)
    ]


def test_no_token_of_an_answer_is_lost_or_doubled_and_little_is_padding() -> None:
    texts = random_texts(300)
    rows = pack(texts, 128, longest_prompt=20)
    assert max(map(len, rows)) <= 128
    batch = collate(rows)
    assert sorted(batch.tokens[batch.answers].tolist()) == sorted(t for text in texts for t in text.answer)
    assert (batch.texts == -1).float().mean() < 0.03
    assert (batch.tokens[(batch.texts >= 0) & ~batch.answers] == -1).all()  # and the rest is prompts


def test_every_text_is_contiguous_with_its_own_positions() -> None:
    texts = random_texts(40)
    batch = collate(pack(texts, 128, longest_prompt=30))
    found = Counter()
    for b in range(len(batch.tokens)):
        numbers = batch.texts[b]
        assert (numbers[numbers >= 0].diff() >= 0).all()
        for number in range(int(numbers.max()) + 1):
            here = numbers == number
            assert batch.positions[b, here].tolist() == list(range(int(here.sum())))
            found[tuple(batch.tokens[b, here].tolist())] += 1
    assert found == Counter(tuple(text.prompt + text.answer) for text in texts)


def test_long_prompts_are_cut_at_the_beginning_and_long_texts_at_the_end() -> None:
    (row,) = pack([Text("a", list(range(10)), list(range(100, 110)), [list(range(200, 210))])], 8, longest_prompt=3)
    batch = collate([row])
    assert batch.tokens.tolist() == [[7, 8, 9, 100, 101, 102, 103, 104]]
    assert batch.positions.tolist() == [list(range(8))]
    assert batch.answers.tolist() == [[False] * 3 + [True] * 5]
    assert batch.iterates.tolist() == [[[-1, -1, -1, 200, 201, 202, 203, 204]]]
    (row,) = pack([Text("a", [1, 2], [3])], 8, longest_prompt=0)
    assert collate([row]).tokens.tolist() == [[3]]


def test_iterates_are_stored_at_the_tokens_that_they_guess() -> None:
    texts = [
        Text("a", [1, 2], [11, 12, 13], [[21, 22, 23], [31, 32, 33]]),
        Text("b", [3], [14, 15], [[24, 25]]),
        Text("c", [4], [16]),
    ]
    batch = collate(pack(texts, 9, longest_prompt=4), pad_id=7)
    assert batch.tokens.tolist() == [[1, 2, 11, 12, 13, 3, 14, 15, 7][:8], [4, 16] + [7] * 6]
    first, second = batch.iterates[0].tolist()
    assert first == [-1, -1, 21, 22, 23, -1, 24, 25]
    assert second == [-1, -1, 31, 32, 33, -1, -1, -1]
    assert (batch.iterates[1] == -1).all()
    assert collate(pack(texts[2:], 9, longest_prompt=4)).iterates is None


def test_prompts_as_long_as_rows_are_refused_and_empty_answers_left_out() -> None:
    with pytest.raises(UserError, match=r"longest_prompt=8: must be at least 0 and below length=8"):
        pack(random_texts(1), 8, longest_prompt=8)
    assert pack([Text("a", [1], [])], 8, longest_prompt=4) == []


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_get_equally_many_rows_and_no_row_is_left_out(world_size: int) -> None:
    orders = [EpochOrder(11, rank, world_size, seed=5) for rank in range(world_size)]
    shares = [list(order) for order in orders]
    assert {len(share) for share in shares} == {len(orders[0])}
    assert {row for share in shares for row in share} == set(range(11))
    assert sum(map(len, shares)) < 11 + world_size
    assert list(orders[0]) == shares[0]
    orders[0].set_epoch(1)
    assert list(orders[0]) != shares[0]


@pytest.mark.parametrize(("texts", "world_size"), [(5, 2), (1, 3), (4, 2)])
def test_ranks_get_equally_many_held_out_rows_and_each_answer_once(texts: int, world_size: int) -> None:
    """With too few rows, a rank gets one without an answer: processes that share layers wait for one another."""
    data = TextDataModule(random_texts(6), random_texts(texts), length=64, longest_prompt=20, batch_size=2)
    batches = []
    for rank in range(world_size):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        batches.append(list(data.val_dataloader()))
    assert len({tuple(len(batch.tokens) for batch in share) for share in batches}) == 1
    answers = [t for share in batches for batch in share for t in batch.tokens[batch.answers].tolist()]
    kept = [piece for row in data.validation_rows for piece in row.pieces]
    assert sorted(answers) == sorted(t for piece in kept for t in piece.tokens[piece.prompt_length :])


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_gets_full_batches_in_another_order_every_epoch() -> None:
    class Recorder(LightningModule):
        def training_step(self, batch: PackedBatch, batch_idx: int) -> None:
            seen[self.current_epoch].append(batch)

        def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
            held_out.append(batch)

        def configure_optimizers(self) -> None:
            return None

    def fit() -> None:
        data = TextDataModule(texts[5:], texts[:5], length=128, longest_prompt=20, batch_size=2, seed=3)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        Trainer(
            accelerator="cpu",
            max_epochs=2,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            **quiet,
        ).fit(Recorder(), datamodule=data)

    texts = random_texts(40)
    seen: dict[int, list[PackedBatch]] = {0: [], 1: []}
    held_out: list[PackedBatch] = []
    fit()
    once = {epoch: [batch.tokens for batch in batches] for epoch, batches in seen.items()}
    for batches in seen.values():
        tokens = [t for batch in batches for t in batch.tokens[batch.answers].tolist()]
        assert sorted(tokens) == sorted(t for text in texts[5:] for t in text.answer)
        assert {len(batch.tokens) for batch in batches[:-1]} == {2}
    assert held_out
    assert not all(map(_same, once[0], once[1]))
    seen[0], seen[1] = [], []
    fit()
    assert all(map(_same, once[1], [batch.tokens for batch in seen[1]]))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())
