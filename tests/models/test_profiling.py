import pytest

from selfdraft.core.skipset import SkipSet
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.measuring.profiling import MORE, MORE_S, measure_costs, measure_path
from selfdraft.models.paths.sparse import sparse_path


def test_costs_are_measured_for_every_size_and_not_counted_as_decoding() -> None:
    target = Target(tiny_model("llama"))
    curve = measure_costs(target, sizes=(1, 2, 8), context=20, rounds=1)
    assert curve.sizes == (1, 2, 8)
    assert 0 < curve(1) <= curve(8)
    assert target.forwards == 0


def test_costs_are_measured_within_the_model_s_positions() -> None:
    target = Target(tiny_model("llama"))
    target.max_positions = 24
    assert max(measure_costs(target, context=20, rounds=1).sizes) <= 24


def test_forwards_are_timed_after_one_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in decoding; after a forward of many tokens, one of one token takes longer than it does there."""
    target = Target(tiny_model("llama"))
    ran, forward = [], target.draft_forward
    monkeypatch.setattr(target, "draft_forward", lambda *given: (ran.append(1 + len(given[4][0])), forward(*given))[1])
    monkeypatch.setattr("selfdraft.models.measuring.profiling.MORE_S", 1e9)
    measure_costs(target, sizes=(1, 4, 16), context=8, rounds=1)
    every, small = [1, 1, 1, 4, 1, 16], [1, 1, 1, 4]
    assert ran == every * 2 + small * (1 + MORE)  # each time with a round to warm up


def test_costs_do_not_depend_on_how_fast_the_machine_happened_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is now and then twice as fast: the fastest run of one size says nothing about that of another."""
    seconds = {1: [1.0, 1.0, 2.0, 2.0, 2.0], 2: [2.6, 2.6, 2.6, 2.6, 1.3], 16: [8.0, 16.0, 16.0, 16.0, 16.0]}
    monkeypatch.setattr(
        "selfdraft.models.measuring.profiling.runs_of", lambda target, jobs, *_: {size: seconds[size] for size in jobs}
    )
    curve = measure_costs(Target(tiny_model("llama")), sizes=(1, 2, 16), context=8, rounds=5)
    assert curve.seconds == pytest.approx((1.0, 1.3, 8.0))


def test_further_rounds_end_where_forwards_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    target, rounds = Target(tiny_model("llama")), []
    monkeypatch.setattr(
        "selfdraft.models.measuring.profiling.runs_of",
        lambda target, jobs, count, before: (rounds.append(count), {size: [0.1] for size in jobs})[1],
    )
    measure_costs(target, sizes=(1, 4, 16), context=8, rounds=5)
    assert rounds == [5, int(MORE_S / 0.4)]
    monkeypatch.setattr("selfdraft.models.measuring.profiling.MORE_S", 0.3)
    measure_costs(target, sizes=(1, 4, 16), context=8, rounds=5)
    assert rounds[2:] == [5]
    measure_costs(target, sizes=(1, 4, 16), context=8, rounds=5, by_clock=False)  # equally many in every process
    assert rounds[3:] == [5]


def test_a_path_is_timed_after_full_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in drafting; otherwise weights that only the path reads would already be in the processor's caches."""
    target = Target(tiny_model("llama"))
    path = sparse_path(target, SkipSet.from_layer(4, 1))
    ran, forward = [], target.draft_forward
    monkeypatch.setattr(target, "draft_forward", lambda p, *rest, **more: (ran.append(p), forward(p, *rest, **more))[1])
    measure_costs(target, path=path, sizes=(1, 4), context=8, rounds=2)
    full, of_path = ran[::2], ran[1::2]
    assert all(p is target.full for p in full) and all(p is path for p in of_path)
    assert len(full) == len(of_path) >= 2 * 3


def test_drafts_of_a_path_are_timed_with_their_verifications() -> None:
    target = Target(tiny_model("llama"))
    costs = measure_path(target, sparse_path(target, SkipSet.from_layer(4, 2)), 3, context=8, rounds=1)
    assert costs.plain > 0 and costs.draft > 0 and costs.forward.sizes[0] == 1
    assert [step.drafted for step in costs.steps] == [1, 3]
    assert all(s > 0 for step in costs.steps for s in (step.verify, step.reuse, step.reuse_without_bonus))
    assert target.forwards == 0
    late = measure_path(target, sparse_path(target, SkipSet.of(4, [0], [0])), 1, context=8, rounds=1)
    assert [(step.drafted, step.reuse, step.reuse_without_bonus) for step in late.steps] == [(1, None, None)]


def test_measured_drafts_fit_the_model_s_positions() -> None:
    target = Target(tiny_model("llama"))
    target.max_positions = 12
    costs = measure_path(target, sparse_path(target, SkipSet.from_layer(4, 2)), 100, context=20, rounds=1)
    assert max(step.drafted for step in costs.steps) < 12


def test_verification_reuses_the_leading_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two tokens, the root has already passed through the first two of the four layers."""
    target, drive, seen = Target(tiny_model("llama")), Path.drive, []

    def noting(path, runner, block, *args, since: int = 0, **more):
        seen.append((block.tokens.shape[1] - since, len(path.layers)))
        return drive(path, runner, block, *args, since=since, **more)

    monkeypatch.setattr(Path, "drive", noting)
    measure_path(target, sparse_path(target, SkipSet.from_layer(4, 2)), 1, context=8, rounds=1)
    # The last round: a plain forward, a draft, a verification, one that reuses, and one without the drafted token.
    assert seen[-6:] == [(1, 4), (1, 2), (2, 4), (1, 2), (2, 2), (1, 2)]
