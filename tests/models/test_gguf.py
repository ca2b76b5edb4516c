"""GGUF files of users: read in float32, and refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.models.loading.embedded_gguf import smollm2_135m_gguf
from selfdraft.models.loading.gguf import read_gguf


def test_files_that_are_no_models_are_one_line(tmp_path: Path) -> None:
    for name, content in [("text", b"no model"), ("empty", b""), ("torn", b"GGUF\x03\x00\x00\x00")]:
        (tmp_path / name).write_bytes(content)
        with naming(name), pytest.raises(UserError) as refused:
            read_gguf(tmp_path / name)
        assert "\n" not in str(refused.value) and name in str(refused.value)
    with pytest.raises(UserError, match="nowhere"):
        read_gguf(tmp_path / "nowhere")


def test_another_architecture_is_one_line(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "other.gguf", "no-such-model")
    writer.add_tensor("a", np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="cannot be read by transformers"):
        read_gguf(tmp_path / "other.gguf")


@pytest.mark.real
@pytest.mark.slow
def test_values_are_those_of_the_file() -> None:
    file = smollm2_135m_gguf()
    model = read_gguf(file)
    assert next(model.parameters()).dtype == torch.float32 and not model.training
    norm = next(tensor for tensor in GGUFReader(file).tensors if tensor.name == "output_norm.weight")
    assert model.model.norm.weight.tolist() == norm.data.tolist()
