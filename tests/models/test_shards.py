"""Two processes divide a target's layers: each holds half of them, and the teacher outputs do not change."""

from __future__ import annotations

from typing import Any

import pytest

from command_line import of_ranks
from shard_ranks import RANKS

pytestmark = pytest.mark.slow
LAYERS = 4  # of the model that they divide


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process wrote."""
    return of_ranks("shard_ranks.py", RANKS, tmp_path_factory.mktemp("group"))


def test_each_process_holds_its_part_of_the_layers_also_after_they_have_run(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        expected = rank["before"] - rank["layers"] * (1 - 1 / RANKS)
        assert rank["after"] == pytest.approx(expected, rel=0.01)
        assert rank["after"] < 0.6 * rank["before"]
        # A thread of gloo may still hold the layer that it gathered last, however often the layers have run.
        assert rank["again"] < 1.01 * (expected + rank["layers"] / LAYERS)


def test_teacher_outputs_are_those_of_whole_layers(ranks: list[dict[str, Any]]) -> None:
    assert [rank["same"] for rank in ranks] == [True, True]


def test_processes_with_stored_outputs_run_the_target_as_often_as_those_without(ranks: list[dict[str, Any]]) -> None:
    assert [rank["stored"] for rank in ranks] == [True, True]
    assert [rank["runs"] for rank in ranks] == [3, 3]
