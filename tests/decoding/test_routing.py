"""Certificates of mixtures of experts: a tie of routing is no fault, and excuses none. Rounding measured in steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch

from faults import EVERYWHERE, Fault
from hybrids import hybrid
from made import made
from selfdraft.core.certificate import Certificate
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.decoding.stretches import StretchReader
from selfdraft.drafters.presets import configured
from selfdraft.models.families.routing import Forced, Notes, Routing, forced, mixtures
from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.small import small_model
from selfdraft.models.reference.stock_forward import StockForward
from subjects import PROMPTS, stock_output

PROMPT = [5, 17, 3, 60, 42]
TOKENS = 10


@pytest.fixture(scope="module")
def mixture() -> Target:
    """A model that rounding makes choose other experts."""
    return Target(small_model("glm4_moe", torch.bfloat16))


def certified(target: Target, tokens: int = TOKENS, prompt: list[int] = PROMPT) -> Certificate:
    config = configured("pool", costs="flat", max_nodes=12)
    output = Decoder(target, made(target, config), Stopping(frozenset(), tokens)).decode(prompt).output
    return Certifier(target).by_stock_with_ties(prompt, output)


def test_a_tie_of_routing_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which texts meet one depends on how a processor rounds, so there are several; one of them has to."""
    by_routing = 0
    for family in ("glm4_moe", "laguna"):
        target = Target(small_model(family, torch.bfloat16))
        for prompt, tokens in product(PROMPTS[:2], (TOKENS, 24)):
            found = certified(target, tokens, prompt)
            assert found.verdict in ("exact", "tie") and found.distance < found.ceiling  # type: ignore[operator]
            with monkeypatch.context() as without:
                without.setattr(StretchReader, "with_one_routing", lambda *_: None)
                by_routing += certified(target, tokens, prompt).reason == "forward"
    assert by_routing


@pytest.mark.parametrize("fault", EVERYWHERE, ids=lambda fault: fault.__name__)
def test_one_routing_excuses_no_fault(mixture: Target, fault: Fault) -> None:
    """A fault that moves margins no further than rounding does in one text is found in another."""
    with fault(mixture):
        assert any(certified(mixture, 36, prompt).verdict == "mismatch" for prompt in PROMPTS)


def test_a_wrong_router_is_found(mixture: Target) -> None:
    """Made to take the same experts, the truth would agree with it; but it would have to be told too often."""
    with other_routers(mixture):
        found = certified(mixture)
    assert (found.verdict, found.reason) == ("mismatch", "forward")


@contextmanager
def other_routers(target: Target) -> Iterator[None]:
    def turned(part: torch.nn.Module, given: object, out: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (*out[:2], (out[2] + 1) % 4)

    routers = [layer.mlp.gate for layer in target.full.layers if hasattr(layer.mlp, "gate")]
    hooks = [router.register_forward_hook(turned) for router in routers]
    yield
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def test_a_forward_takes_the_experts_that_it_is_given() -> None:
    model = small_model("glm4_moe")
    ids, parts = torch.tensor([PROMPT]), mixtures([model])
    with Notes(parts) as notes:
        stock = model(ids).logits
    notes.keep()
    routing, count = notes.routing(), len(PROMPT) * len(parts)
    assert [tuple(experts.shape) for experts, _ in routing.chosen] == [(len(PROMPT), 1)] * len(parts)
    same, found = Forced(), Forced()
    with forced(parts, routing, same):
        torch.testing.assert_close(model(ids).logits, stock)
    assert (same.decisions, same.changed, same.share) == (count, 0, 0.0)
    other = Routing([((experts + 1) % 4, weights) for experts, weights in routing.chosen])
    with forced(parts, other, found), Notes(parts) as notes:  # the notes are taken after the change
        changed = model(ids).logits
    notes.keep()
    assert found.changed > count // 2 and not torch.allclose(changed, stock)  # a router may come to the same by itself
    assert all(a[0].equal(b[0]) for a, b in zip(notes.routing().chosen, other.chosen, strict=True))
    torch.testing.assert_close(model(ids).logits, stock)  # no hook is left


def test_notes_keep_the_tokens_of_the_text_only() -> None:
    model = small_model("glm4_moe")
    with Notes(mixtures([model])) as notes, torch.inference_mode():
        model(torch.tensor([PROMPT]))
        notes.keep()
        model(torch.tensor([[1, 2, 3, 4]]))
        notes.keep([0, 2])
        notes.keep()
    assert len(notes.routing().chosen[0][0]) == len(PROMPT) + 2
    assert len(notes.routing().first(3).chosen[0][0]) == 3


def test_rounding_beyond_the_calculated_one_is_measured_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear attention rounds more; the model itself does so, too, when it takes the text in steps."""
    target, prompt = StatefulTarget(hybrid("qwen3_5_text")), PROMPTS[3]
    output = stock_output(target.model, prompt)
    found = Certifier(target).by_stock_with_ties(prompt, output)  # type: ignore[arg-type]
    assert found.verdict == "exact" and found.distance < found.ceiling < 1e-3  # type: ignore[operator]
    monkeypatch.setattr(StretchReader, "with_steps", lambda *_: None)
    assert Certifier(target).by_stock_with_ties(prompt, output).reason == "control"  # type: ignore[arg-type]


@torch.inference_mode()
def test_steps_give_the_logits_of_the_whole_text() -> None:
    model, text = hybrid("qwen3_5_text"), list(range(30, 60))
    whole = torch.cat(list(StockForward(model).stretches(text, 4, [3, 12, 30])))
    for size in (1, 4, 30):
        steps = list(StockForward(model).in_steps(text, [3, 12, 30], size))
        assert [len(each) for each in steps] == [9, 18]
        torch.testing.assert_close(torch.cat(steps), whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("share", [1e-5, 0.02])
def test_steps_that_differ_by_more_than_rounding_excuse_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(small_model("glm4_moe"))
    text, stock = [*PROMPT, *range(10)], StockForward(target.model)
    right = stock.stretches

    def other(*_: object) -> Iterator[torch.Tensor]:
        return (logits + share * logits.std(-1, keepdim=True) * torch.linspace(-1, 1, 96) for logits in exact)

    exact = list(right(text, 5, [4, 15]))
    monkeypatch.setattr(stock, "in_steps", other)
    found = StretchReader(target, stock, None, 5).with_steps(text, [4, 15])
    assert (found is None) is (share > 1e-3)
