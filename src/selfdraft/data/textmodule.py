"""The Lightning data module of training: packed rows, shuffled anew every epoch, dealt to the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from selfdraft.data.distilled import Text
from selfdraft.data.packing import PackedBatch, collate, pack


class TextDataModule(LightningDataModule):
    """Batches of `batch_size` packed rows for every rank.

    Create the Trainer with `use_distributed_sampler=False`: rows are dealt out here.
    """

    def __init__(
        self,
        train: Sequence[Text],
        validation: Sequence[Text],
        *,
        length: int,
        longest_prompt: int,
        batch_size: int,
        seed: int = 0,
        pad_id: int = 0,
    ) -> None:
        """Pack the texts.

        Args:
            train, validation: see `distilled.split_by_prompt`.
            length: tokens a row at most. longest_prompt: see `packing.pack`.
            seed: of the order of rows, together with the epoch.
            pad_id: what stands in the place of tokens that are none.

        Raises:
            UserError: prompts may be as long as rows.
        """
        super().__init__()
        # Fewer rows to validate on than processes leave some without any, which Lightning takes for a mistake.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.train_rows = pack(train, length, longest_prompt=longest_prompt)
        self.validation_rows = pack(validation, length, longest_prompt=longest_prompt)
        self.batch_size, self.seed, self.collate = batch_size, seed, partial(collate, pad_id=pad_id)

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """This rank's rows of an epoch; Lightning tells the sampler which epoch it is.

        Every rank gets as many batches of the same sizes, since each step waits for the gradients of all.
        """
        rank, world_size = self._place()
        sampler = EpochOrder(len(self.train_rows), rank, world_size, self.seed)
        return DataLoader(self.train_rows, self.batch_size, sampler=sampler, collate_fn=self.collate, num_workers=0)

    def val_dataloader(self) -> DataLoader[PackedBatch]:
        """This rank's share, no row twice: ranks may differ by one, so none may wait for another within a step."""
        rank, world_size = self._place()
        share = self.validation_rows[rank::world_size]
        return DataLoader(share, self.batch_size, collate_fn=self.collate, num_workers=0)

    def _place(self) -> tuple[int, int]:
        """Rank and number of ranks; without a trainer, one takes all."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


class EpochOrder(Sampler[int]):
    """Rank r of n takes rows r, r + n, r + 2n, ... of an order that depends on seed and epoch alone.

    Where the ranks' shares would differ by one, those that lack a row take one from the beginning of the order: at most
    n - 1 rows come twice in an epoch, and none is left out.
    """

    def __init__(self, rows: int, rank: int, world_size: int, seed: int) -> None:
        self.rows, self.rank, self.world_size, self.seed, self.epoch = rows, rank, world_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.world_size)

    def __iter__(self) -> Iterator[int]:
        # Generators of neighbouring seeds must not meet in neighbouring epochs, hence the factor.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        return (order[i % self.rows] for i in range(self.rank, len(self) * self.world_size, self.world_size))
