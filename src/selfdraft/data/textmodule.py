"""The Lightning data module of training: packed rows, reshuffled for every pass, divided among the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from selfdraft.data.datamodule import as_dataset
from selfdraft.data.distilled import Text
from selfdraft.data.packing import Piece, Row, collate, pack


class TextDataModule(LightningDataModule):
    """Batches of `batch_size` packed rows for every rank.

    Create the Trainer with `use_distributed_sampler=False`, because rows are divided among the ranks here.
    """

    def __init__(
        self,
        train: Sequence[Text],
        validation: Sequence[Text],
        *,
        length: int,
        longest_prompt: int,
        batch_size: int,
        steps: int | None = None,
        seed: int = 0,
        pad_id: int = 0,
    ) -> None:
        """Pack the texts.

        Args:
            train, validation: see `distilled.split_by_prompt`.
            length: tokens per row, at most.
            longest_prompt: see `packing.pack`.
            batch_size: rows per batch.
            steps: batches per epoch on every rank; None for one pass over the rows.
            seed: of the order of rows.
            pad_id: token id of padding.

        Raises:
            UserError: `longest_prompt` is not below `length`.
        """
        super().__init__()
        self.train_rows = pack(train, length, longest_prompt=longest_prompt)
        self.validation_rows = pack(validation, length, longest_prompt=longest_prompt)
        self.batch_size, self.steps, self.seed, self.collate = batch_size, steps, seed, partial(collate, pad_id=pad_id)

    def train_dataloader(self) -> DataLoader[Row]:
        """Return this rank's rows of an epoch; Lightning sets the sampler's epoch.

        All ranks get the same number of batches of the same sizes, because each step waits for the gradients of all.
        """
        rank, world_size = self._place()
        size = None if self.steps is None else self.steps * self.batch_size
        sampler = EpochOrder(len(self.train_rows), rank, world_size, self.seed, size)
        return DataLoader(
            as_dataset(self.train_rows), self.batch_size, sampler=sampler, collate_fn=self.collate, num_workers=0
        )

    def val_dataloader(self) -> DataLoader[Row]:
        """Return this rank's share, without repetition.

        All ranks get as many rows: a rank that lacks one gets a row without an answer, in which nothing is counted.
        Processes that share the target's layers have to run them equally often (see `models.training.shards`).
        """
        rank, world_size = self._place()
        share = self.validation_rows[rank::world_size]
        if self.validation_rows and len(share) < -(-len(self.validation_rows) // world_size):
            share = [*share, Row((Piece(self.validation_rows[0].pieces[0].tokens[:1], 1, []),))]
        return DataLoader(as_dataset(share), self.batch_size, collate_fn=self.collate, num_workers=0)

    def _place(self) -> tuple[int, int]:
        """Return the rank and the number of ranks; without a trainer, 0 and 1."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


class EpochOrder(Sampler[int]):
    """The order of rows: an endless sequence of shuffles of all rows, of which rank r of n takes every n-th row.

    The sequence depends only on the seed, and an epoch's part of it only on the epoch, so that a resumed training goes
    on where it stopped. Every rank gets `size` rows per epoch, whatever the number of rows.
    """

    def __init__(self, rows: int, rank: int, world_size: int, seed: int, size: int | None = None) -> None:
        self.rows, self.rank, self.world_size, self.seed, self.epoch = rows, rank, world_size, seed, 0
        self.size = -(-rows // world_size) if size is None else size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.size * self.world_size + self.rank
        orders: dict[int, list[int]] = {}
        for place in range(first, first + self.size * self.world_size, self.world_size):
            shuffle, at = divmod(place, self.rows)
            if shuffle not in orders:
                # The factor keeps neighbouring seeds from using the same shuffles at neighbouring places.
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + shuffle)
                orders[shuffle] = torch.randperm(self.rows, generator=generator).tolist()
            yield orders[shuffle][at]
