import pytest

from selfdraft.core.skipset import SkipSet
from selfdraft.models import profiling
from selfdraft.models.profiling import measure_costs
from selfdraft.models.sparse import sparse_path
from selfdraft.models.target import Target
from selfdraft.models.tiny import tiny_model


def test_costs_are_measured_for_every_size_and_not_counted_as_decoding() -> None:
    target = Target(tiny_model("llama"))
    curve = measure_costs(target, sizes=(1, 2, 8), context=20, rounds=1)
    assert curve.sizes == (1, 2, 8)
    assert 0 < curve(1) <= curve(8)
    assert target.forwards == 0


def test_a_model_of_few_positions_is_measured_within_them() -> None:
    target = Target(tiny_model("llama"))
    target.max_positions = 24
    assert max(measure_costs(target, context=20, rounds=1).sizes) <= 24


def test_medians_are_of_runs_that_take_turns_behind_one_that_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ran = iter([0, 9, 0, 9, 0, 1, 0, 5, 0, 2, 0, 4, 0, 3, 0, 7]), []
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: next(clock))
    jobs = {name: lambda name=name: ran.append(name) for name in ("a", "b")}
    assert profiling.interleaved_medians(jobs, 3) == {"a": 2, "b": 5}
    assert ran == ["a", "b"] * 4


def test_a_path_is_timed_behind_full_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it drafts: what only it reads would otherwise wait for it in the caches."""
    target = Target(tiny_model("llama"))
    path = sparse_path(target, SkipSet.from_layer(4, 1))
    ran, forward = [], target.draft_forward
    monkeypatch.setattr(target, "draft_forward", lambda p, *rest, **more: (ran.append(p), forward(p, *rest, **more))[1])
    measure_costs(target, path=path, sizes=(1, 4), context=8, rounds=2)
    assert [p is path for p in ran] == [False, True] * (2 * 3)
