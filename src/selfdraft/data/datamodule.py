"""The Lightning data module: deals every prompt to exactly one rank."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from selfdraft.data.prompts import Prompt


class PromptDataModule(LightningDataModule):
    """Gives single Prompts to the test loop, rank r of n taking prompts r, r + n, r + 2n, ... of the list.

    Create the Trainer with `use_distributed_sampler=False`: Lightning's own sampler pads the ranks to equal length by
    repeating prompts, which would count those twice. Ranks may therefore differ by one prompt, so nothing inside a
    test step may wait for another rank. A resumed run passes the prompts that are still to do.
    """

    def __init__(self, prompts: Sequence[Prompt], *, together: bool = False) -> None:
        """Deal out `prompts`; or, `together`, give all of them to every rank (tree parallelism)."""
        super().__init__()
        self.together = together
        # Fewer prompts than processes leave some without any, which Lightning takes for a mistake unless told.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.prompts = list(prompts)

    def test_dataloader(self) -> DataLoader[Prompt]:
        """This rank's share, one Prompt (not a list of one) an item; without a trainer, all of them."""
        dealt = self.trainer is not None and not self.together
        rank = self.trainer.global_rank if dealt else 0
        world_size = self.trainer.world_size if dealt else 1
        # itemgetter(0) opens the batch of one. Loading is a list index, so worker processes would only cost time.
        return DataLoader(self.prompts[rank::world_size], batch_size=1, collate_fn=itemgetter(0), num_workers=0)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the batch alone: a Prompt holds no tensor, and Lightning refuses to walk a frozen dataclass."""
        return batch
