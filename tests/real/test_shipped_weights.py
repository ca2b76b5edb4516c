"""The trained weights that come with SelfDraft fit the default model, and beat untrained ones by far."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from made import costs_for
from selfdraft.data.sources import load_bundled
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.engines.choice import AUTO, use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import load_embedded
from selfdraft.models.trained.adapter import FEATURE, JUMP, Adapter
from selfdraft.models.trained.shipped import FOLDER

pytestmark = [pytest.mark.real, pytest.mark.slow]
PROMPTS, TOKENS = 5, 32
FLOOR = 0.3  # of first drafted tokens; 0.34 were accepted on answers to held-out prompts of Spec-Bench, more on these
TRAINED_ON = 1  # first bundled prompts, which are among the texts of the training


@pytest.fixture(scope="module")
def real() -> tuple[Target, list[list[int]]]:
    """The default model, and prompts that it was not trained on."""
    loaded = load_embedded("float32", torch.device("cpu"))
    target, chat = Target(loaded.model), Chat(loaded.tokenizer)
    use_engine(target, AUTO)
    bundled = load_bundled()[TRAINED_ON : TRAINED_ON + PROMPTS]
    return target, [list(chat.encode([("user", prompt.turns[0])])) for prompt in bundled]


def answers(real: tuple[Target, list[list[int]]], **options: object) -> list[Generation]:
    """Answers drafted by a jump of one token."""
    target, prompts = real
    config = configured("jump", draft_length=1, length="threshold", **options)
    drafter = drafter_for(target, config, costs_for(target))
    return Decoder(target, drafter, Stopping(frozenset(), TOKENS)).answer([Request(prompt) for prompt in prompts])


def accepted(found: list[Generation]) -> float:
    """The share of the drafted tokens that were accepted."""
    return sum(sum(each.counts.accepted) for each in found) / sum(sum(each.counts.offered) for each in found)


def test_first_tokens_are_accepted_above_a_floor_that_untrained_weights_miss(
    real: tuple[Target, list[list[int]]], tmp_path: Path
) -> None:
    trained = answers(real)
    assert accepted(trained) > FLOOR
    shipped = Adapter.read(FOLDER / "jump")
    width = shipped.tensors[JUMP].shape[0]
    layers = real[0].anatomy.layers
    plain = {f"layer.{at}.{name}": p.detach() for at in (28, 29) for name, p in layers[at].named_parameters()}
    matrices = {JUMP: torch.eye(width), FEATURE: torch.eye(width)}
    untrained = {"vocabulary": shipped.tensors["vocabulary"], **matrices, **plain}
    Adapter("jump", shipped.settings, untrained).write(tmp_path)
    without = answers(real, adapter=str(tmp_path))
    assert accepted(without) < FLOOR / 2
    assert [each.output for each in without] == [each.output for each in trained]
