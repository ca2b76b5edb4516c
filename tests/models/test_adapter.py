"""An adapter's file is untrusted data: a damaged file, or one that is not ours, gives one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from naming import naming
from payload import Payload
from selfdraft.core.errors import UserError
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import FILE, Adapter

GOOD = {
    "lora.1.mlp.up_proj.A": torch.ones(2, 32),
    "lora.1.mlp.up_proj.B": torch.ones(64, 2),
    "norm.weight": torch.ones(32),
    "vocabulary": torch.arange(9),
}
SETTINGS = {"scale": 0.5, "first": 0, "skip_attention": [2], "skip_mlp": []}


def target() -> Target:
    return Target(tiny_model("llama", seed=0), packed=False)


def written(folder: Path, tensors: dict[str, Tensor], settings: object = SETTINGS) -> Path:
    metadata = {"recipe": "some", "settings": settings if isinstance(settings, str) else json.dumps(settings)}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / FILE, metadata)
    return folder


def test_a_written_file_reads_back(tmp_path: Path) -> None:
    Adapter("some", SETTINGS, GOOD).write(tmp_path)
    found = Adapter.read(tmp_path)
    assert (found.recipe, found.settings) == ("some", SETTINGS)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in GOOD.items())
    assert adapted_path(target(), found).skip.attention == {2}


def test_invalid_settings_give_one_clear_line(tmp_path: Path) -> None:
    for settings in (
        "[", "[" * 100_000, "3", "[]", {"scale": "big"}, {"scale": float("nan")}, {"scale": None}, {"skip_mlp": 1},
        {"skip_mlp": ["1"]}, {"skip_mlp": [-1]}, {"skip_attention": [True]}, {"more": 1},
        {"scale": 10**999}, {"skip_mlp": [10**999]},
    ):  # fmt: skip
        refused = pytest.raises(UserError, match=r"^drafter\.adapter=.*give the folder that task=finetune wrote$")
        with naming(settings), refused:
            Adapter.read(written(tmp_path, GOOD, settings))


def test_unknown_tensors_give_one_clear_line(tmp_path: Path) -> None:
    for tensors in (
        {"lora.1.mlp.up_proj.A": torch.ones(2, 32)},
        {"lora.1.mlp.up_proj.A": torch.ones(2, 32), "lora.1.mlp.up_proj.B": torch.ones(64, 3)},
        {"lora.1.mlp.up_proj.A": torch.ones(2), "lora.1.mlp.up_proj.B": torch.ones(64, 2)},
        {"lora.x.mlp.up_proj.A": torch.ones(2, 32), "lora.x.mlp.up_proj.B": torch.ones(64, 2)},
        {"other": torch.ones(2)},
        {"norm.weight": torch.full((32,), float("nan"))},
        {"norm.weight": torch.ones(32, dtype=torch.int64)},
        {"norm.weight": torch.ones(32, dtype=torch.complex64)},
        {"vocabulary": torch.ones(3)},
        {"vocabulary": torch.tensor([-1, 2])},
        {"vocabulary": torch.ones(2, 2, dtype=torch.int64)},
        {"vocabulary": torch.ones(0, dtype=torch.int64)},
        {"pseudo": torch.ones(32)},
        {"pseudo": torch.ones(0, 32)},
        {"mask": torch.ones(32)},
        {"masks": torch.ones(2, 32)},
        {"feature.weight": torch.ones(3)},
    ):
        refused = pytest.raises(
            UserError, match=r"^drafter\.adapter=.*: its tensor .*give the folder that task=finetune"
        )
        with naming(tensors), refused:
            Adapter.read(written(tmp_path, tensors))


def test_weights_of_another_model_give_one_clear_line(tmp_path: Path) -> None:
    ours = target()
    for tensors, settings in (
        ({"vocabulary": torch.tensor([10**6])}, {}),
        ({"lora.9.mlp.up_proj.A": torch.ones(2, 32), "lora.9.mlp.up_proj.B": torch.ones(64, 2)}, {}),
        ({"layer.4.mlp.up_proj.weight": torch.ones(64, 32)}, {}),
        ({"layer.1.mlp.up_proj.weight": torch.ones(64)}, {}),
        ({"norm.weight": torch.ones(31)}, {}),
        ({"norm.other": torch.ones(32)}, {}),
        ({"feature.weight": torch.ones(31, 31)}, {}),
        ({}, {"skip_attention": [4]}),
        ({"pseudo": torch.ones(2, 32)}, {}),
    ):
        adapter = Adapter.read(written(tmp_path, tensors, {**SETTINGS, **settings}))
        with naming(tensors, settings), pytest.raises(UserError, match=r"^drafter\.path\.adapter: "):
            adapted_path(ours, adapter)


def test_damaged_files_give_one_clear_line_and_run_no_code(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD) / FILE
    genuine, marker = file.read_bytes(), tmp_path / "marker"
    header = len(genuine) - sum(tensor.nbytes for tensor in GOOD.values())
    variants = [genuine[:length] for length in (0, 4, 8, 100, len(genuine) - 1)]
    for at in range(0, header, 7):
        variants.append(genuine[:at] + bytes([genuine[at] ^ 0x55]) + genuine[at + 1 :])
    variants.append((10**15).to_bytes(8, "little") + genuine[8:])
    refused, ours = 0, target()
    for variant in variants:
        file.write_bytes(variant)
        try:
            adapted_path(ours, Adapter.read(tmp_path))
        except UserError as error:
            assert str(error).startswith(("drafter.adapter", "drafter.path.adapter")) and "\n" not in str(error)
            refused += 1
    assert refused > len(variants) / 2
    torch.save(Payload(marker), file)
    with pytest.raises(UserError):
        Adapter.read(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["nowhere", "~nobody/x", "a" * 300, FILE])
def test_a_missing_file_gives_one_clear_line(name: str, tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(UserError, match=r"^drafter\.adapter="):
        Adapter.read(name if name.startswith("~") else tmp_path / name)
