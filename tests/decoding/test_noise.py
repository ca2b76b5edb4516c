"""The uniform random numbers of an answer: one per position, whatever its length."""

from __future__ import annotations

import torch
from numpy.random import default_rng

from made import costs_for
from selfdraft.decoding import loop
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context, DrafterConfig
from selfdraft.drafters.none import NoDrafter
from stub_target import StubTarget, successor


def test_random_numbers_do_not_depend_on_how_many_were_drawn() -> None:
    every = torch.from_numpy(default_rng(3).random(2000))
    noise = loop._Noise(3)
    for positions in ([0], [2, 1], [900, 3, 1500], [1999], [5]):
        assert noise.at(torch.tensor(positions)).equal(every[positions])


def test_a_drafter_s_random_numbers_follow_those_of_the_answer() -> None:
    drawn: list[float] = []

    class Drawing(NoDrafter):
        def start(self, context: Context) -> None:
            drawn.append(context.rng.random())

    target = StubTarget(successor)
    Decoder(target, Drawing(target, DrafterConfig(), costs_for(target)), Stopping(frozenset(), 7)).decode([1], seed=3)
    assert drawn == [default_rng(3).random(9)[8]]
