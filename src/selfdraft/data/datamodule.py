"""The Lightning data module of prompts; it gives every prompt to exactly one rank."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from selfdraft.data.prompts import Prompt

Item = TypeVar("Item")


def as_dataset(items: list[Item]) -> Dataset[Item]:
    """Return a list as a DataLoader's dataset: the loader needs its length and items, but its types want a subclass."""
    return cast("Dataset[Item]", items)


class PromptDataModule(LightningDataModule):
    """Gives lists of `together` Prompts to the test loop; rank r of n gets prompts r, r + n, r + 2n, ...

    Create the Trainer with `use_distributed_sampler=False`: Lightning's own sampler pads the ranks to equal length by
    repeating prompts, which would count those twice. Ranks may therefore differ by one prompt, so nothing inside a
    test step may wait for another rank. A resumed run passes only the prompts that are not finished.
    """

    def __init__(self, prompts: Sequence[Prompt], together: int = 1, *, shared: bool = False) -> None:
        """Divide `prompts` among the ranks; with `shared`, give all of them to every rank (tree parallelism)."""
        super().__init__()
        # With fewer prompts than processes some get none, which Lightning refuses without this setting.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.prompts, self.together, self.shared = list(prompts), together, shared

    def test_dataloader(self) -> DataLoader[Prompt]:
        """Return this rank's share as lists of Prompts, the last one may be shorter; without a trainer, all of them."""
        rank, world_size = 0, 1
        if self.trainer is not None and not self.shared:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        # Loading only indexes a list, so worker processes would only cost time.
        share = self.prompts[rank::world_size]
        return DataLoader(as_dataset(share), batch_size=self.together, collate_fn=list, num_workers=0)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch unchanged: a Prompt holds no tensor, and Lightning cannot traverse a frozen dataclass."""
        return batch
