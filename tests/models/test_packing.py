"""Packed matrices give the results of plain ones, for every number of rows in decoding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from naming import naming
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels import packing
from selfdraft.models.kernels.packing import PackedLinear, can_pack, packable, product_by
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.reference.teacher_forced import teacher_forced

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")

HEIGHTS = range(1, 18)
PACKABLE = [dtype for dtype in (torch.float32, torch.bfloat16) if packable(dtype)]
needs_bfloat16 = pytest.mark.skipif(not packable(torch.bfloat16), reason="this processor has no bfloat16 kernels")


def linear(dtype: torch.dtype, bias: bool, inside: int = 48, outside: int = 80) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(inside, outside, bias=bias).to(dtype)


def rows(height: int, inside: int = 48) -> torch.Tensor:
    return torch.randn(height, inside, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("bias", [True, False])
def test_in_float32_packed_results_are_the_same(bias: bool) -> None:
    plain = linear(torch.float32, bias)
    packed = PackedLinear(plain)
    for height in HEIGHTS:
        with naming(f"{height} rows"):
            torch.testing.assert_close(packed(rows(height)), plain(rows(height)), rtol=1e-5, atol=1e-5)


@needs_bfloat16
@pytest.mark.parametrize("bias", [True, False])
def test_in_half_precision_packed_results_differ_only_by_rounding(bias: bool) -> None:
    plain = linear(torch.bfloat16, bias)
    packed, exact_bias = PackedLinear(plain), None if plain.bias is None else plain.bias.double()
    for height in HEIGHTS:
        x = rows(height).bfloat16()
        assert packed(x).dtype == torch.bfloat16
        exact = nn.functional.linear(x.double(), plain.weight.double(), exact_bias)
        with naming(f"{height} rows"):
            torch.testing.assert_close(packed(x).double(), exact, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", PACKABLE, ids=str)
def test_the_plain_kernel_is_used_up_to_plain_rows_and_the_packed_one_above(dtype: torch.dtype) -> None:
    packed = PackedLinear(linear(dtype, bias=True))
    turn = packed.plain_rows
    assert 0 <= turn < max(HEIGHTS)
    expected = {height: packed(rows(height).to(dtype)) for height in HEIGHTS}
    # Whichever matrix a height uses is the one whose change it notices.
    packed._packed = torch.ops.mkldnn._reorder_linear_weight(torch.zeros_like(packed.weights[0]), None)
    for height in HEIGHTS:
        assert torch.equal(packed(rows(height).to(dtype)), expected[height]) == (height <= turn)


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("early", [True, False], ids=["packed early", "packed at first use"])
def test_a_trial_packs_nothing_and_the_next_product_of_many_rows_does(
    pays: bool, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(packing, "plain_pays", lambda: asked.append(pays) or pays)
    plain = linear(torch.float32, bias=True)
    packed = PackedLinear(plain)
    with packing.unpacked():
        for height in HEIGHTS:
            assert torch.equal(packed(rows(height)), plain(rows(height)))
    assert packed._packed is None and not asked  # no kernels were tried either
    if early:
        packed.pack()
    packed(rows(1))
    assert (packed._packed is None) == (pays and not early)
    packed(rows(17))
    assert packed._packed is not None
    packed._packed = torch.ops.mkldnn._reorder_linear_weight(torch.zeros_like(plain.weight), None)
    torch.testing.assert_close(packed(rows(3)), plain(rows(3)) if pays else plain.bias.expand(3, -1))


@pytest.mark.parametrize("dtype", PACKABLE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2), (2, 8)], ids=str)
def test_packing_keeps_any_leading_shape(shape: tuple[int, int], dtype: torch.dtype) -> None:
    plain = linear(dtype, bias=True)
    x = rows(shape[0] * shape[1]).to(dtype).reshape(*shape, 48)
    out = PackedLinear(plain)(x)
    assert out.shape == (*shape, 80)
    torch.testing.assert_close(out, plain(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("height", [2, 9])
def test_rows_need_not_be_contiguous(height: int) -> None:
    """Every other column of a wider matrix: what a slice or a transposed head hands over."""
    plain = linear(torch.float32, bias=True)
    x = rows(height, inside=96)[:, ::2]
    torch.testing.assert_close(PackedLinear(plain)(x), plain(x), rtol=1e-5, atol=1e-5)


def test_the_weight_is_shared_and_the_original_still_works() -> None:
    plain = linear(torch.float32, bias=True)
    x = rows(9)
    before = plain(x)
    packed = PackedLinear(plain)
    assert packed.weights[0] is plain.weight and packed.biases[0] is plain.bias
    assert torch.equal(plain(x), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_only_dtypes_with_kernels_are_packed(dtype: torch.dtype) -> None:
    """bfloat16 kernels depend on the processor: exactly the dtypes that are called packable must pack."""
    plain = linear(dtype, bias=False)
    try:
        torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), None)
        possible = True
    except RuntimeError:
        possible = False
    assert possible == can_pack(plain)


def test_without_packed_kernels_a_model_runs_on_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without AVX-512: nothing is packed, and the numbers are the unpacked target's."""
    model = tiny_model(dtype=torch.bfloat16)
    plain = teacher_forced(Target(model, packed=False), list(range(12)), 4, 4)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not packable(torch.bfloat16) and packable(torch.float32)
    target = Target(model)
    assert not any(isinstance(part, PackedLinear) for part in target.linears())
    # Norms are still fused, which rounds otherwise.
    torch.testing.assert_close(teacher_forced(target, list(range(12)), 4, 4), plain, rtol=0.05, atol=0.05)
    weight = torch.randn(8, 4, dtype=torch.bfloat16)
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    assert torch.equal(product_by(weight, packed=True)(x), nn.functional.linear(x, weight))


def test_modules_that_cannot_be_packed_are_left_alone() -> None:
    assert not can_pack(linear(torch.float32, bias=False).to("meta"))
    assert not can_pack(nn.SiLU())
    assert not can_pack(linear(torch.float32, bias=False), linear(torch.float32, bias=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("height", [1, 3, 4, 17])
def test_joined_matrices_give_the_results_of_each(height: int, bias: bool) -> None:
    parts = [linear(torch.float32, bias, outside=outside) for outside in (80, 16, 24)]
    x = rows(height)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    torch.testing.assert_close(PackedLinear(*parts)(x), expected, rtol=1e-5, atol=1e-5)
