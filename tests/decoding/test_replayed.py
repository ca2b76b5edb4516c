"""Replays without the model: beside real decoding of the same texts, and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
import torch

from made import costs_for, made
from selfdraft.core.costs import CostCurve
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.replayed import Continuations, Rates, Recorder, Recording, Replayed, Replayer
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.none import NoDrafter
from selfdraft.drafters.specs import spec_of
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from stub_target import StubTarget, cycle

EXACT = (
    "none",
    "prompt_lookup",
    "prompt_lookup draft_length=4 candidates=2 costs=flat",
    "suffix",
    "suffix costs=flat warm=true",
    "pool sources=[suffix]",
)
ESTIMATED = ("jacobi", "jacobi costs=flat", "lookahead", "recycling nodes=16", "pool", "pool warm=true")
PROMPTS = [[5, 17, 3, 60, 42, 17, 3], [62, 12, 62, 12], [11]]
LENGTH = 24


def mixed(text: Sequence[int]) -> int:
    """A text that repeats itself often, but not always, and depends on more than its last token."""
    return (sum(text[-2:]) * 7 + len(text) // 9) % 13


def recorded(target, best: int = 8, length: int = LENGTH, eos: frozenset[int] = frozenset()) -> list[Recording]:
    recorder = Recorder(NoDrafter(target, DrafterConfig(), costs_for(target)), best)
    decoder = Decoder(target, recorder, Stopping(eos, length))
    return [recorder.recorded(decoder.decode(prompt), length - 1) for prompt in PROMPTS]


def decoded(target, name: str, eos: frozenset[int] = frozenset()) -> list[Generation]:
    decoder = Decoder(target, made(target, spec_of(name).config), Stopping(eos, LENGTH))
    return [decoder.decode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def target() -> Target:
    model = tiny_model("llama", seed=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8.0)  # texts that repeat themselves now and then
    return Target(model)


@pytest.fixture(scope="module")
def texts(target: Target) -> list[tuple[object, list[Recording]]]:
    """Targets with their recordings."""
    return [(each, recorded(each)) for each in (StubTarget(mixed), StubTarget(cycle(5)), target)]


def sizes_of(answers: list[Generation]) -> list[int]:
    return [1 + len(step[0]) for answer in answers for step in answer.steps]


@pytest.mark.parametrize("name", EXACT)
def test_drafters_that_read_only_the_text_are_replayed_exactly(texts: list, name: str) -> None:
    for each, recordings in texts:
        answers = decoded(each, name)
        done = Replayer(each, recordings).replay(made(each, spec_of(name).config))
        assert done.sizes == sizes_of(answers)
        assert done.tokens == sum(answer.counts.new_tokens for answer in answers)


@pytest.mark.parametrize("name", ESTIMATED)
def test_replays_of_others_are_close(texts: list, name: str) -> None:
    for each, recordings in texts:
        answers = decoded(each, name)
        done = Replayer(each, recordings).replay(made(each, spec_of(name).config))
        forwards = sum(answer.counts.target_forwards for answer in answers)
        assert done.tokens_per_forward == pytest.approx(done.tokens / forwards, rel=0.35)


def test_the_target_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    target = StubTarget(mixed)
    recordings = recorded(target)
    monkeypatch.delattr(StubTarget, "forward")
    monkeypatch.delattr(StubTarget, "draft_forward")
    for name in (*EXACT, *ESTIMATED):
        assert Replayer(target, recordings).replay(made(target, spec_of(name).config)).tokens == 3 * LENGTH


def test_a_recording_has_the_text_of_plain_decoding_and_what_it_was_chosen_from(target: Target) -> None:
    for recording, plain in zip(recorded(target, best=3), decoded(target, "none"), strict=True):
        assert list(recording.output) == plain.output
        assert len(recording.best) >= len(recording.output) - 1
        assert [tokens[0] for tokens, _ in recording.best] == plain.output[: len(recording.best)]
        assert all(len(set(tokens)) == 3 and sum(chances) == pytest.approx(1) for tokens, chances in recording.best)


def test_a_text_that_ends_early_is_replayed_to_its_end() -> None:
    target, eos = StubTarget(cycle(9)), frozenset({7})
    recordings = recorded(target, eos=eos)
    assert [recording.output[-1] for recording in recordings] == [7, 7, 7]
    for name in (*EXACT, *ESTIMATED):
        done = Replayer(target, recordings).replay(made(target, spec_of(name).config))
        assert done.tokens == sum(len(recording.output) for recording in recordings)


def test_a_target_that_takes_only_chains_gets_chains() -> None:
    target = StubTarget(cycle(5))
    recordings = recorded(target)
    target.chains_only = True
    seen = []
    drafter = made(target, spec_of("suffix costs=flat").config)
    observe = type(drafter).observe

    def noting(self, context, step) -> None:
        seen.append(step.draft.tree.is_chain)
        observe(self, context, step)

    drafter.observe = noting.__get__(drafter)
    Replayer(target, recordings).replay(drafter)
    assert seen and all(seen)


def test_a_drafter_s_own_time_is_measured() -> None:
    target, ticks = StubTarget(cycle(5)), count()
    done = Replayer(target, recorded(target), clock=lambda: float(next(ticks))).replay(
        made(target, spec_of("suffix").config)
    )
    assert done.draft_s == 3 + 2 * len(done.sizes) - 3  # each start, each proposal, and all observations but the last


def test_continuations_prefer_the_longest_context() -> None:
    one = Recording([1, 2, 3], [4, 5, 6], 2, [([4, 9], [0.7, 0.3]), ([5, 9], [0.8, 0.2]), ([6, 9], [0.6, 0.4])])
    known = Continuations([one], best=2)
    assert known.after((2, 3, 4), 2) == ([5, 9], [0.8, 0.2])
    assert known.after((8, 8, 4), 2) == ([5, 9], [0.8, 0.2])  # by the last token only
    assert known.after((8, 8, 1), 2)[0][0] == 2  # of the prompt: one token is known, the other one is filled in
    tokens, chances = known.after((7, 7, 7), 2)  # unknown: the tokens that were predicted most often
    assert tokens == [4, 5] and chances == [0.5, 0.5]
    assert known.after((2, 3, 4), 1) == ([5], [1.0])


def test_rates_by_hand() -> None:
    step, best = CostCurve((1, 5), (1.0, 3.0)), CostCurve((1, 5), (0.1, 0.5))
    done = Replayed(tokens=8, sizes=[5, 1, 1], draft_s=0.5)
    assert done.tokens_per_forward == pytest.approx(8 / 3)
    assert Rates(step).speedup(done) == pytest.approx(8 / 5.5)
    assert Rates(step, best).speedup(done) == pytest.approx(8 / (5.5 + 0.5 + 0.2))
