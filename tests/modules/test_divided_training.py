"""Two processes train every LoRA recipe on divided layers: the same bits as on whole ones, in less memory."""

from __future__ import annotations

from typing import Any

import pytest

from command_line import of_ranks
from selfdraft.modules.recipes import RECIPES
from shard_ranks import RANKS
from shard_training import CASES, STEPS

pytestmark = pytest.mark.slow
COPIES_WHOLE = {"exit_adapter", "jump"}  # tests/app/test_shard_base.py trains these
each_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process wrote."""
    return of_ranks("shard_training.py", RANKS, tmp_path_factory.mktemp("group"))


def test_every_recipe_with_a_lora_is_tried() -> None:
    assert {case.recipe for case in CASES.values()} == set(RECIPES) - COPIES_WHOLE


@each_case
def test_divided_layers_train_the_same_bits_by_the_same_losses(name: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        whole, divided = rank[name]["whole"], rank[name]["divided"]
        assert whole["moved"]
        assert len(whole["losses"]) == STEPS * CASES[name].accumulate
        assert len(whole["history"]) == STEPS // 2
        for part in ("losses", "history", "tensors"):
            assert divided[part] == whole[part]
    assert ranks[0][name]["divided"]["tensors"] == ranks[1][name]["divided"]["tensors"]


@each_case
def test_a_process_holds_only_its_part_between_steps(name: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        whole, divided = rank[name]["whole"], rank[name]["divided"]
        assert whole["held"] - divided["held"] > 0.8 * whole["layers"] * (1 - 1 / RANKS)
        assert divided["between"] == 0


@each_case
def test_one_layer_at_a_time_is_whole_in_a_step(name: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        whole, divided = rank[name]["whole"], rank[name]["divided"]
        assert divided["whole"] == 1
        assert whole["kept"] > whole["layers"] / 5
        assert divided["kept"] == 0
