"""At most one device-to-host synchronisation a step, counted on logits that pretend to live on a device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lossless import NEED_WEIGHTS
from made import costs_for, made
from random_drafts import RandomTree
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters import Drafter
from selfdraft.drafters.presets import PRESETS, configured
from selfdraft.drafters.prompt_lookup import PromptLookup
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model

PROMPTS = [[5, 17, 3, 60, 44, 5, 17, 3], [21, 8, 21, 8, 9]]
WAITS = {"cpu", "item", "tolist", "numpy", "nonzero", "equal", "__bool__", "__int__", "__float__", "__index__"}


class OnDevice(Tensor):
    """A tensor that knows what would make the host wait for a device. So does all that is computed from it."""

    waits = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        by_mask = name == "__getitem__" and isinstance(args[1], OnDevice) and args[1].dtype == torch.bool
        result = super().__torch_function__(func, types, args, kwargs or {})
        if name in WAITS or by_mask:
            OnDevice.waits += 1
        return result.as_subclass(Tensor) if name == "cpu" else result


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    target = Target(tiny_model())
    forward = target.forward
    monkeypatch.setattr(target, "forward", lambda *a, **asked: [x.as_subclass(OnDevice) for x in forward(*a, **asked)])
    return target


def waits_by_step(target: Target, drafter: Drafter, rule: NextToken, batch_size: int = 1) -> Iterator[int]:
    decoder = Decoder(target, drafter, Stopping(frozenset({95}), 24), rule=rule, batch_size=batch_size)
    OnDevice.waits, forwards, before = 0, target.forwards, 0
    for _ in decoder.run(Request(prompt, seed) for seed, prompt in enumerate(PROMPTS[:batch_size], start=1)):
        if target.forwards != forwards:  # once a step, however many requests took part
            yield OnDevice.waits - before
            forwards, before = target.forwards, OnDevice.waits


DRAWS_AFTERWARDS = {"jacobi", "sparse_jacobi"}
RULES = [NextToken(), NextToken(sample=True, temperature=2.0, top_k=20, top_p=0.9), NextToken(min_new_tokens=6)]


@pytest.mark.parametrize("rule", RULES, ids=["greedy", "sample", "min_new_tokens"])
@pytest.mark.parametrize(
    ("name", "batch_size"),
    zip((name for name in PRESETS if name not in NEED_WEIGHTS), itertools.cycle([1, 2]), strict=False),
)
def test_a_step_synchronises_with_the_device_once(target: Target, name: str, rule: NextToken, batch_size: int) -> None:
    waits = list(waits_by_step(target, made(target, configured(name)), rule, batch_size))
    # A sampled Jacobi iterate is drawn from what verification has decided: once more for every request.
    most = 1 + batch_size if name in DRAWS_AFTERWARDS and rule.sample else 1
    assert len(waits) > 2 and min(waits) == 1 and max(waits) <= most


@pytest.mark.parametrize("rule", RULES[:2], ids=["greedy", "sample"])
def test_a_tree_step_synchronises_with_the_device_once(target: Target, rule: NextToken) -> None:
    waits = list(waits_by_step(target, RandomTree(target, RandomTree.Config(how="certain"), costs_for(target)), rule))
    assert len(waits) > 2 and set(waits) == {1}


class Asks(PromptLookup):
    """A planted fault: one look at the logits in every step."""

    def observe(self, context, step) -> None:
        super().observe(context, step)
        self.best = int(step.logits[0].argmax())


def test_an_additional_synchronisation_is_noticed(target: Target) -> None:
    assert max(waits_by_step(target, Asks(target, Asks.Config(), costs_for(target)), NextToken())) == 2
