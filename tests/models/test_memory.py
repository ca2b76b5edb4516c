"""The memory that a run will need against what its objects hold, and peaks by phase."""

from __future__ import annotations

import mmap
import sys
from itertools import cycle

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.packing import PackedLinear
from selfdraft.models.loading.loading import outline_pretrained
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from selfdraft.models.measuring import memory
from selfdraft.models.measuring.memory import BLOCK, PROMPT, TREE, PeakMemory, needed, refuse_what_cannot_fit

CPU = torch.device("cpu")


@pytest.mark.parametrize(("family", "dtype"), zip(FAMILIES, cycle([torch.float32, torch.bfloat16]), strict=False))
def test_the_estimated_memory_equals_the_memory_held(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype, max_positions=4096)
    need = needed(model, dtype, CPU, rows=1, packed=True, new_tokens=100, certify=True)
    assert need.weights == sum(p.nbytes for p in model.parameters())
    target = Target(model)
    assert need.packed == sum(m.weight.nbytes for m in target.linears() if isinstance(m, PackedLinear))
    target.allocate(1, PROMPT + 100 + TREE)
    target.forward([0], [1], [TokenTree.empty()])
    assert need.cache == pytest.approx(1e6 * target.cache.megabytes())
    assert need.float32 == (0 if dtype == torch.float32 else 4 * target.parameters)
    assert need.total == need.weights + need.packed + need.cache + need.logits + need.float32


def test_rows_and_options_change_what_is_needed() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    options = {"rows": 1, "packed": True, "new_tokens": 100, "certify": True}

    def of(**changes):
        return needed(model, torch.bfloat16, CPU, **{**options, **changes})

    assert of(rows=4).cache == 4 * of().cache
    assert (of(packed=False).packed, of(certify=False).float32) == (0, 0)
    assert needed(model, torch.bfloat16, torch.device("cuda"), **options).packed == 0
    assert of(new_tokens=10_000).cache <= 2 * 4 * 2 * 8 * 2 * (512 + TREE + BLOCK)  # the model has 512 positions


def test_memory_is_estimated_without_reading_weights(tmp_path) -> None:
    model = tiny_model("qwen2")
    model.config.save_pretrained(tmp_path)  # there are no weights to be read
    outline = outline_pretrained(str(tmp_path))
    assert {p.device.type for p in outline.parameters()} == {"meta"}
    assert sum(p.numel() for p in outline.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", ["rwkv", "openai-gpt"])
def test_an_unsupported_family_is_refused_before_its_memory_is_estimated(family: str) -> None:
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(AutoConfig.for_model(family))
    with pytest.raises(UserError, match=f"model family '{family}"):
        needed(outline, torch.float32, CPU, rows=1, packed=True, new_tokens=1, certify=True)


@pytest.mark.parametrize("family", ["bloom", "gpt2", "gemma3", "opt", "gptj"])
def test_the_memory_of_families_that_name_their_sizes_otherwise_is_estimated(family: str) -> None:
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(AutoConfig.for_model(family))
    assert needed(outline, torch.float32, CPU, rows=1, packed=True, new_tokens=1, certify=True).cache > 0


def test_a_run_that_does_not_fit_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    need = memory.Needed(weights=3_000_000, packed=2_000_000, cache=1_000_000, logits=0, float32=6_000_000)
    monkeypatch.setattr(memory, "available", lambda device: 12_000_000)
    refuse_what_cannot_fit(need, CPU)
    with pytest.raises(UserError) as refusal:
        refuse_what_cannot_fit(need, CPU, processes=2)
    assert str(refusal.value) == (
        "memory: this run needs about 2 processes of 12 MB (weights 3, packed copies 2, cache 1, float32 copy to "
        "certify by 6), but cpu has 12 MB left: take a smaller model, a narrower model.dtype, model.engine=eager or "
        "model.packed=false"
    )
    monkeypatch.setattr(memory, "available", lambda device: 11_999_999)
    with pytest.raises(UserError, match="needs about 12 MB"):
        refuse_what_cannot_fit(need, CPU)


def test_what_is_available_is_a_number_of_this_machine() -> None:
    assert 1e7 < memory.available(CPU) < 1e14


@pytest.mark.skipif(sys.platform != "linux", reason="peaks within a phase are known on Linux only")
def test_each_phase_has_its_own_peak() -> None:
    peaks = PeakMemory(CPU)
    with peaks("small"):
        pass
    with peaks("large"):
        # 200 MB, gone before the phase ends. Mapped by hand: torch's might come from memory that earlier tests freed.
        with mmap.mmap(-1, 200_000_000) as block:
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
        with peaks("within"):
            pass
    with peaks("small"):
        pass
    assert peaks.peaks["large"] > peaks.peaks["small"] + 150
    assert peaks.peaks["within"] < peaks.peaks["large"] - 150


def test_without_linux_the_resident_set_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    peaks = PeakMemory(CPU)
    with peaks("load"):
        pass
    assert 10 < peaks.peaks["load"] < 1e6
