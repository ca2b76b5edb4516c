from itertools import product
from types import SimpleNamespace

import pytest
from pytorch_lightning import LightningModule, Trainer

from naming import naming
from selfdraft.data.datamodule import PromptDataModule
from selfdraft.data.prompts import Prompt

PROMPTS = [Prompt(str(i), "qa", (f"Question {i}?",)) for i in range(11)]


def share(rank: int, world_size: int, together: int = 1) -> list[list[Prompt]]:
    module = PromptDataModule(PROMPTS, together)
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    loader = module.test_dataloader()
    items = list(loader)
    assert len(loader) == len(items)
    return items


def test_every_prompt_is_given_exactly_once():
    for (world_size, sizes), together in product([(1, [11]), (2, [6, 5]), (3, [4, 4, 3])], [1, 2, 4, 16]):
        with naming(world_size, sizes, together):
            shares = [[p for item in share(rank, world_size, together) for p in item] for rank in range(world_size)]
            assert [len(prompts) for prompts in shares] == sizes
            assert sorted((p for prompts in shares for p in prompts), key=PROMPTS.index) == PROMPTS


def test_prompts_alternate_between_ranks():
    assert [[prompt.id for prompt in item] for item in share(1, 3)] == [["1"], ["4"], ["7"], ["10"]]


def test_prompts_of_one_batch_stay_together():
    assert [[prompt.id for prompt in item] for item in share(1, 3, 3)] == [["1", "4", "7"], ["10"]]
    assert [len(item) for item in share(0, 1, 4)] == [4, 4, 3]


def test_a_rank_without_prompts_gets_an_empty_loader():
    assert share(11, 12) == []


def test_without_a_trainer_all_prompts_come_in_order():
    assert list(PromptDataModule(tuple(PROMPTS)).test_dataloader()) == [[prompt] for prompt in PROMPTS]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_trainer_passes_each_batch_to_the_test_step():
    class Recorder(LightningModule):
        def test_step(self, batch: list[Prompt], batch_idx: int) -> None:
            seen.append(batch)

    seen: list[list[Prompt]] = []
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.test(Recorder(), datamodule=PromptDataModule(PROMPTS, 8), verbose=False)
    assert seen == [PROMPTS[:8], PROMPTS[8:]]
