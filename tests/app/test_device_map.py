"""model.device_map: a run whose layers are partly on a disk, and what it does not go with."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import SMALLEST, ErrorLine, read_lines, read_result, run_here
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_tokenizer()
    tiny_model("llama", seed=0, vocab_size=len(tokenizer), max_positions=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_evaluation_writes_what_it_does_with_all_layers_in_memory(
    dtype: str, checkpoint: Path, tmp_path: Path
) -> None:
    model = (*SMALLEST, "model=hf", f"model.path={checkpoint}", f"model.dtype={dtype}")
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) // (1 if dtype == "float32" else 2)
    spread = ("model.device_map=auto", f"model.max_memory=['cpu:{size * 6 // 10}']",
              f"model.offload_folder={tmp_path}/offloaded")  # fmt: skip
    run_here(tmp_path / "disk", *model, *spread)
    run_here(tmp_path / "memory", *model, "model.engine=eager", "model.packed=false")
    disk, memory = read_lines(tmp_path / "disk"), read_lines(tmp_path / "memory")
    assert [line["output_ids"] for line in disk] == [line["output_ids"] for line in memory]
    assert [line["steps"] for line in disk] == [line["steps"] for line in memory]
    assert read_result(tmp_path / "disk")["lossless"]["mismatch"] == 0


def test_what_it_does_not_go_with_is_one_clear_line(checkpoint: Path, error_line: ErrorLine) -> None:
    model = ("model=hf", f"model.path={checkpoint}")
    assert "need model.device_map=auto" in error_line(*model, "model.max_memory=[cpu:1GiB]")
    spread = (*model, "model.device_map=auto")
    assert "leave model.engine and model.weights out" in error_line(*spread, "model.engine=native")
    assert "drafter=width_skip has matrices of its own" in error_line(*spread, "drafter=width_skip")
    assert "leave model.device_map out" in error_line(*spread, "task=finetune", "finetune.data=[x]")
    assert "leave model.device_map out" in error_line(*spread, "task=profile")
    assert "use hardware.devices=1" in error_line(*spread, "hardware=cpu_ddp")
    assert "choose one of auto, balanced, sequential" in error_line(*model, "model.device_map=everywhere")
