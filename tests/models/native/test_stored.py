"""Products with stored matrices: the values of torch, and the same bits for a token alone and among others."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfdraft.core.tree import TokenTree
from selfdraft.models.engines.choice import run_natively
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.native import build, layers
from selfdraft.models.kernels.native.build import compiled, library
from selfdraft.models.kernels.native.stored import (
    BFLOAT16,
    CODES4,
    CODES8,
    FLOAT32,
    INTEGERS4,
    INTEGERS8,
    Stored,
    stored,
)
from selfdraft.models.kernels.weights import encoded
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.reference.invariance import alike_in_trees

pytestmark = pytest.mark.skipif(not build.has_compiler(), reason="there is no C++ compiler")
WEIGHTS = {
    FLOAT32: lambda weight: weight,
    BFLOAT16: lambda weight: weight.bfloat16().float(),
    CODES8: lambda weight: encoded(weight, 8).values(),
    CODES4: lambda weight: encoded(weight, 4).values(),
    INTEGERS8: lambda weight: encoded(weight, 8).values(),
    INTEGERS4: lambda weight: encoded(weight, 4).values(),
}
COUNTS = (*range(1, 14), 47, 48, 61)  # tokens: every size of a block, and both ways to decode


def product(lib: ctypes.CDLL, matrix: Stored, x: Tensor, threads: int) -> Tensor:
    """x times a matrix."""
    described, out = matrix.described(), torch.full((len(x), matrix.outputs), torch.nan)
    lib.selfdraft_product(
        byref(described), c_void_p(x.data_ptr()), c_int64(len(x)), c_void_p(out.data_ptr()), c_int64(threads)
    )
    return out


@pytest.fixture(scope="module", params=["this processor's", "the widest"])
def lib(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library, also with vectors of sixteen numbers, which this processor may not have."""
    if request.param == "the widest":
        return ctypes.CDLL(str(compiled(tmp_path_factory.mktemp("wide"), "-DWIDE", "-O1")))
    return library()


@pytest.mark.slow
def test_layers_are_the_eager_ones_with_vectors_wider_than_a_head(
    lib: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "library", lambda: lib)
    model = tiny_model("qwen3")
    targets = [Target(model), Target(model)]
    run_natively(targets[1])
    assert alike_in_trees(targets[1])
    for target in targets:
        target.allocate(1, 64)
        target.prefill(0, [5, 17, 3, 60])
    eager, native = (target.forward([0], [9], [TokenTree.chain([1, 2, 3])])[0] for target in targets)
    torch.testing.assert_close(native, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("format", WEIGHTS)
def test_products_are_torch_s_and_a_token_has_its_bits_in_any_block(lib: ctypes.CDLL, format: int) -> None:
    generator = torch.Generator().manual_seed(format)
    for outputs, inputs, bias in ((32, 32, None), (131, 288, torch.randn(131, generator=generator)), (7, 64, None)):
        weight = WEIGHTS[format](torch.randn(outputs, inputs, generator=generator))
        matrix = stored(weight, bias, integers=format in (INTEGERS4, INTEGERS8))
        assert matrix.format == format
        x = torch.randn(max(COUNTS), inputs, generator=generator)
        expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        whole = product(lib, matrix, x, 2)
        torch.testing.assert_close(whole.double(), expected, rtol=1e-4, atol=2e-4)
        for count in COUNTS:
            for threads in (1, 3):
                assert torch.equal(product(lib, matrix, x[:count].contiguous(), threads), whole[:count]), count


@pytest.mark.parametrize("format", [INTEGERS4, INTEGERS8])
def test_integers_are_as_exact_as_floats_and_hide_no_invalid_number(lib: ctypes.CDLL, format: int) -> None:
    generator = torch.Generator().manual_seed(format)
    weight = WEIGHTS[format](torch.randn(64, 96, generator=generator))
    matrix = stored(weight, integers=True)
    x = torch.randn(6, 96, generator=generator)
    x[1] *= 1e6
    x[2, 7] = 1e4  # beside it, the others of its group have fewer bits
    x[3] = 0.0
    x[4] = 1e-35  # counts as zero
    found, expected = product(lib, matrix, x, 1).double(), x.double() @ weight.double().T
    for each, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert (ours - theirs).abs().max() <= 3e-5 * x[each].abs().max() * weight.abs().max() + 1e-30, each
    for invalid in (torch.nan, torch.inf):
        x[0, 40] = invalid
        found = product(lib, matrix, x, 1)
        assert found[0].isnan().all() and found[1:].isfinite().all()


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_scales_of_16_bits_are_restored_from_the_values(lib: ctypes.CDLL, bits: int, integers: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    least, most = (0, 15) if bits == 4 else (-127, 127)
    codes = torch.randint(least, most + 1, (40, 3, 32), generator=generator).float()
    codes[..., 0], codes[..., 1] = least, most  # so that a group reaches from its least level to its highest
    scales, lows = (torch.randn(40, 3, 1, generator=generator).half().float() for _ in range(2))
    weight = (codes * scales.abs() + (lows if bits == 4 else 0)).flatten(1)
    other = torch.cat([weight[:-1], weight[-1:] * 1.0001])
    assert stored(other, integers=integers).scales.dtype == torch.float32  # type: ignore[union-attr]
    matrix, x = stored(weight, integers=integers), torch.randn(3, 96, generator=generator)
    assert matrix.scales is not None and matrix.scales.dtype == torch.float16
    assert matrix.shifts is None or matrix.shifts.dtype == torch.float16
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(product(lib, matrix, x, 2).double(), expected, rtol=1e-4, atol=1e-3)


def test_a_matrix_takes_the_fewest_bits_that_keep_its_values() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    sizes = {format: stored(make(weight)).nbytes for format, make in WEIGHTS.items() if format <= CODES4}
    assert sizes[CODES4] < sizes[CODES8] < sizes[BFLOAT16] < sizes[FLOAT32] == weight.nbytes
    for format in (CODES4, CODES8):
        assert stored(WEIGHTS[format](weight), integers=True).nbytes == sizes[format]
    almost = WEIGHTS[CODES4](torch.randn(200, 96, generator=torch.Generator().manual_seed(2)))
    almost[-1, -1] += 0.01  # after the rows that are tried first
    assert stored(almost).format == FLOAT32
    with pytest.raises(ValueError, match="9 inputs do not come in eights"):
        stored(torch.ones(4, 9))


def test_the_flags_never_let_a_compiler_choose_what_is_fused() -> None:
    assert "-ffp-contract=off" in build.FLAGS and not any("fast-math" in flag for flag in build.FLAGS)
    assert {path.name for path in Path(build.__file__).parent.glob("*.[ch]*")} == set(build.SOURCES)
