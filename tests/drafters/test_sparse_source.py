"""The pool with a trained path: run only if that pays, trusted by its acceptance rate, with its states reused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from made import made
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.estimates import Estimates
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context, Drafter, DrafterConfig
from selfdraft.drafters.path_source import Answer, PathSource, Question
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.trained.adapter import Adapter

PROMPT = [5, 17, 3, 60, 42]
LENGTH = 24


@pytest.fixture
def target() -> Target:
    return Target(tiny_model("llama", seed=2))


def adapter(folder: Path, *skipped: int) -> str:
    """The target itself but for `skipped` layers: skipping none, it knows the next token."""
    Adapter("test", {"scale": 1.0, "skip_attention": skipped, "skip_mlp": skipped}, {}).write(folder)
    return str(folder)


def decode(target: Target, drafter: Drafter) -> Generation:
    return Decoder(target, drafter, Stopping(frozenset(), LENGTH)).decode(PROMPT)


def test_an_accurate_path_gains_one_token_per_step(target: Target, tmp_path: Path) -> None:
    generation = decode(target, made(target, configured("pool", costs="flat", adapter=adapter(tmp_path))))
    assert generation.output == decode(target, made(target, DrafterConfig())).output
    assert generation.counts.target_forwards <= LENGTH / 2
    offered, accepted = (generation.counts.acceptance_by_depth()[0][key] for key in ("offered", "accepted"))
    assert offered == accepted


@pytest.mark.parametrize(("draft", "asked"), [(0.0, True), (5.0, False)])
def test_the_path_is_run_only_if_that_is_expected_to_pay(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draft: float, asked: bool
) -> None:
    """Skipping the first layer, nothing of it can be reused: asking costs `draft` forwards."""
    monkeypatch.setattr(target, "costs", CostCurve((1, 64), (1.0, 1.1)), raising=False)
    monkeypatch.setattr(target, "costs_of", lambda path: CostCurve((1, 64), (draft, draft)), raising=False)
    pool = made(target, configured("pool", adapter=adapter(tmp_path, 0)))
    answers: list[Answer] = []
    monkeypatch.setattr(pool.source, "ask", _noting(pool.source, answers))
    decode(target, pool)
    assert bool(answers) == asked


def _noting(source: PathSource, answers: list[Answer]):
    ask = source.ask

    def noted(*args) -> Answer:
        answers.append(ask(*args))
        return answers[-1]

    return noted


def test_states_of_leading_layers_are_reused(target: Target, tmp_path: Path) -> None:
    source = made(target, configured("pool", costs="flat", adapter=adapter(tmp_path, 2))).source
    target.allocate(1, 32)
    target.prefill(0, PROMPT[:-1])
    question = Question(node=-1, branch=(), count=1, doubt=8, rival=None)
    answer = source.ask(Context(0, list(PROMPT), len(PROMPT), 9, None), question)
    assert answer.reuse.layers == 2 and len(answer.reuse.states) == 1
    (guesses,) = answer.guesses.values()
    assert sum(chance for _, chance in guesses) <= 1 and len(guesses) == source.guesses


def test_only_tokens_that_other_sources_lacked_count_as_gain(target: Target, tmp_path: Path) -> None:
    source = made(target, configured("pool", costs="flat", adapter=adapter(tmp_path))).source
    for rival, rises in ((9, False), (4, True), (None, True)):
        learned = Estimates()
        before = source.expected_gain(learned, 0.3)
        asked = Question(node=-1, branch=(), count=1, doubt=5, rival=rival)
        source.learn(learned, Answer(asked, {(): [(9, 0.8)]}), (9,))
        assert (source.expected_gain(learned, 0.3) > before) == rises


def test_an_adapter_without_a_path_and_one_of_a_deeper_model_are_refused(target: Target, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"skips layer 5, and this one's layers are 0 to 3$"):
        made(target, configured("pool", adapter=adapter(tmp_path, 5)))
    Adapter("pseudo_tokens", {"skip_attention": [], "skip_mlp": []}, {"pseudo": torch.zeros(2, 32)}).write(tmp_path)
    with pytest.raises(UserError, match="trained pseudo tokens, and no path to draft through: use drafter=pseudo_toke"):
        made(target, configured("pool", adapter=str(tmp_path)))
