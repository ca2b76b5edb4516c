"""The cost model: parts add up to the whole and to a skip set's cost; a roofline is bound by one resource."""

from __future__ import annotations

import json

import pytest

from selfdraft.core.costmodel import CostModel, roofline
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet

LABELS = {"device": "a stub", "model": "none", "dtype": "float32", "source": "made up", "confidence_s": 0.5}


def line(at_one: float, slope: float) -> CostCurve:
    return CostCurve((1, 5), (at_one, at_one + 4 * slope))


def model() -> CostModel:
    """Four layers; base 2, layer 0.25, attention 1, mlp 3 seconds for one token, and a tenth of each for one more."""
    base, layer, attention, mlp = 2.0, 0.25, 1.0, 3.0
    without = {
        "attention": base + 4 * (layer + mlp),
        "mlp": base + 4 * (layer + attention),
        "all": base,
    }
    full = base + 4 * (layer + attention + mlp)
    curves = {name: line(seconds, seconds / 10) for name, seconds in without.items()}
    return CostModel.from_parts(line(full, full / 10), curves, 4, head=line(1.0, 0.1), **LABELS)


@pytest.mark.parametrize(
    ("attention", "mlp", "seconds"),
    [
        ([], [], 19.0),
        ([1, 2], [], 17.0),
        ([], [0], 16.0),
        ([1], [1], 14.75),  # a whole layer: its norms go too
        ([0, 1, 2, 3], [0, 1, 2, 3], 2.0),
    ],
)
def test_the_cost_of_a_skip_set_is_the_sum_of_its_remaining_parts(
    attention: list[int], mlp: list[int], seconds: float
) -> None:
    sparse = model().sparse(SkipSet(frozenset(attention), frozenset(mlp)))
    assert sparse(1) == pytest.approx(seconds)
    assert sparse(3) == pytest.approx(1.2 * seconds)


def test_noise_makes_no_cost_negative() -> None:
    curves = {"attention": line(9.0, 0), "mlp": line(4.0, 0), "all": line(2.0, 0)}
    noisy = CostModel.from_parts(line(8.0, 0), curves, 4, head=line(1.0, 0), **LABELS)
    assert noisy.attention(1) == 0.0


def test_a_cost_file_reads_back_as_it_was_written() -> None:
    one = model()
    assert CostModel.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize("damage", ["device", "mlp", "layers"])
def test_a_file_without_a_cost_model_gives_one_clear_line(damage: str) -> None:
    plain = {name: value for name, value in model().to_dict().items() if name != damage}
    with pytest.raises(UserError, match=rf"somewhere\.json is no cost model \(KeyError: '{damage}'\)"):
        CostModel.from_dict(plain, "somewhere.json")


SHAPE = {
    "layers": 2,
    "hidden": 8,
    "intermediate": 16,
    "heads": 2,
    "kv_heads": 1,
    "vocabulary": 100,
    "context": 0,
    "device": "x",
    "model": "y",
    "source": "z",
}


def test_a_roofline_is_bound_by_bandwidth_then_by_compute() -> None:
    """MLP 384 numbers, head 800, attention 192 (q and o 128, k and v 64) and 16 bytes of keys and values a token."""
    bound = roofline(bytes_per_s=1.0, flops_per_s=1e9, sizes=(1, 2), **SHAPE)
    assert bound.mlp.seconds == (768.0, 768.0)
    assert bound.head.seconds == (1600.0, 1600.0)
    assert bound.attention.seconds == (384.0 + 16, 384.0 + 32)
    assert bound.forward(1) == bound.sparse(SkipSet())(1) == 1600 + 2 * (768 + 400)
    products = roofline(bytes_per_s=1e9, flops_per_s=1.0, sizes=(1, 2), **SHAPE)
    assert products.mlp.seconds == (768.0, 1536.0)
    assert products.attention.seconds == (384.0 + 32, 768.0 + 128)
