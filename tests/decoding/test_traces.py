"""Traces: for every position, the draft that would begin there."""

from __future__ import annotations

import pytest
import torch

from made import made
from selfdraft.core.replay import walk
from selfdraft.core.sampling import NextToken
from selfdraft.core.skipset import SkipSet
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.decoding.traces import Tracer
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.reference.processors import repetition_penalty

PROMPTS = [[5, 17, 3, 60, 42], [64, 12, 64, 12], [11]]


@pytest.fixture(scope="module")
def target() -> Target:
    model = tiny_model("llama", seed=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(100.0)  # sublayers add little: sparse drafts are right now and then
    return Target(model)


def decoded(target: Target, config: DrafterConfig, rule: NextToken, length: int = 40) -> list:
    drafter = made(target, config)
    decoder = Decoder(target, drafter, Stopping(frozenset(), length), rule=rule)
    return [decoder.decode(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "rule", [NextToken(), NextToken(processors=(repetition_penalty(1.3),))], ids=["plain", "penalty"]
)
def test_the_full_model_always_agrees_with_itself(target: Target, rule: NextToken) -> None:
    outputs = [g.output for g in decoded(target, DrafterConfig(), rule)]
    traces = Tracer(target, list(zip(PROMPTS, outputs, strict=True)), rule).traces(SkipSet())
    assert all(trace.agrees.all() for trace in traces)
    assert all(((trace.confidence > 0) & (trace.confidence <= 1)).all() for trace in traces)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_a_simulated_replay_is_close_to_real_decoding(target: Target, threshold: float) -> None:
    """Steps and drafted tokens, over skip sets: blocks begin elsewhere than drafts, so single places may differ."""
    outputs = [g.output for g in decoded(target, DrafterConfig(), NextToken())]
    walked, real = [], []
    for skip in (SkipSet(frozenset({1}), frozenset()), SkipSet(frozenset(), frozenset({2})), SkipSet.spread(4, 0.5)):
        tracer = Tracer(target, list(zip(PROMPTS, outputs, strict=True)), NextToken())
        done = walk(tracer.traces(skip), 3, threshold)
        config = configured(
            "layer_skip",
            skip_attention=sorted(skip.attention),
            skip_mlp=sorted(skip.mlp),
            draft_length=3,
            min_confidence=threshold,
        )
        generations = decoded(target, config, NextToken())
        assert done.tokens == sum(len(g.output) for g in generations)
        walked.append(sum(done.verified))
        real.append(sum(g.counts.target_forwards for g in generations))
        assert done.drafted == pytest.approx(sum(len(step[0]) for g in generations for step in g.steps), rel=0.15)
    assert len(set(real)) > 1
    assert walked == pytest.approx(real, rel=0.1)
