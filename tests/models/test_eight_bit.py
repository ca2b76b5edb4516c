"""Adapters stored in 8 bits: a quarter of the size, and read as floats close to those that were trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfdraft.core.errors import UserError
from selfdraft.models.kernels.native.stored import CODES8, stored
from selfdraft.models.trained.adapter import FILE, Adapter
from selfdraft.models.trained.eight_bit import in_eight_bits, in_floats


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 64, generator=generator) * torch.logspace(-1, 2, 40)[:, None]  # rows of every size
    return {
        "layer.2.mlp.up_proj.weight": matrix,
        "layer.2.norm.weight": torch.randn(60, generator=generator),
        "jump.weight": torch.randn(8, 8, generator=generator),  # its inputs make no group of 32
        "feature.weight": torch.zeros(32, 32),
        "vocabulary": torch.arange(5),
    }


def test_every_group_keeps_its_own_precision() -> None:
    given = tensors()
    back = in_floats(in_eight_bits(given))
    assert back.keys() == given.keys()
    name = "layer.2.mlp.up_proj.weight"
    groups, differences = (t.unflatten(1, (-1, 32)) for t in (given[name], back[name] - given[name]))
    assert (differences.abs() <= groups.abs().amax(-1, keepdim=True) / 127 / 2 * 1.2).all()  # a scale is a float16
    for exact in ("layer.2.norm.weight", "jump.weight", "feature.weight", "vocabulary"):
        assert torch.equal(back[exact], given[exact])


def test_the_values_are_multiplied_by_from_their_codes() -> None:
    name = "layer.2.mlp.up_proj.weight"
    assert stored(in_floats(in_eight_bits(tensors()))[name]).format == CODES8


def test_a_file_has_a_quarter_of_the_size(tmp_path: Path) -> None:
    adapter = Adapter("jump", {"first": 1}, {"layer.2.mlp.up_proj.weight": torch.randn(400, 416)})
    adapter.write(tmp_path / "floats")
    adapter.write(tmp_path / "bytes", eight_bit=True)
    sizes = [(tmp_path / name / FILE).stat().st_size for name in ("bytes", "floats")]
    assert sizes[0] < 0.28 * sizes[1]
    read = Adapter.read(tmp_path / "bytes")
    assert read.tensors.keys() == adapter.tensors.keys()
    assert read.tensors["layer.2.mlp.up_proj.weight"].dtype == torch.float32


@pytest.mark.parametrize("scales", ["scales/layer.1.x", "scales/layer.2.x"])
def test_scales_belong_to_a_matrix_that_they_fit(tmp_path: Path, scales: str) -> None:
    tensors = {"layer.2.x": torch.ones(3, 64, dtype=torch.int8), scales: torch.ones(4, 2)}
    save_file(tensors, tmp_path / FILE, metadata={"recipe": "jump", "settings": "{}"})
    with pytest.raises(UserError, match="fits no 8-bit matrix"):
        Adapter.read(tmp_path)


def test_bytes_without_scales_are_refused(tmp_path: Path) -> None:
    save_file(
        {"layer.2.x": torch.ones(3, 2, dtype=torch.int8)}, tmp_path / FILE, metadata={"recipe": "r", "settings": "{}"}
    )
    with pytest.raises(UserError, match="finite numbers"):
        Adapter.read(tmp_path)
