"""task=doctor: a table of what works for one model, whatever is wrong with it; refused runs point to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import RwkvConfig, RwkvForCausalLM

from command_line import SMOKE, ErrorLine, said_by, tamper
from hybrids import save_hybrid
from selfdraft.app.tasks import checkup
from selfdraft.app.tasks.doctor import how_to_ask
from selfdraft.core.errors import UserError
from selfdraft.drafters.jacobi import Jacobi
from selfdraft.drafters.presets import PRESETS
from selfdraft.drafters.suffix import Suffix
from selfdraft.models.cache.attention import IMPLEMENTATIONS
from selfdraft.models.engines.choice import COMPILED, EAGER
from selfdraft.models.loading.loading import DTYPES
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer

Findings = dict[str, dict[str, Any]]


def findings(folder: Path, *overrides: str) -> Findings:
    """What the task wrote, by choice; the table on the terminal has a line for each."""
    said = said_by(folder, *SMOKE, "task=doctor", "logger=none", *overrides)
    result = json.loads((folder / "doctor.json").read_text())
    found = result["findings"]
    assert result["tried"] == len(found) and result["works"] == sum(each["works"] for each in found)
    assert f"{result['works']} of {result['tried']} work for {result['model']} on this machine" in said
    assert "Traceback" not in said
    return {each["choice"]: each for each in found}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what compiles, which takes seconds."""
    monkeypatch.setattr(checkup, "COMPILED", EAGER)
    monkeypatch.setattr(checkup, "NATIVE", EAGER)


@pytest.mark.slow
def test_everything_is_tried_and_works_on_a_tiny_model(tmp_path: Path) -> None:
    found = findings(tmp_path / "run")
    assert {f"drafter={name}" for name in PRESETS if name != "chain"} <= found.keys()
    assert {f"model.dtype={name}" for name in DTYPES} <= found.keys()
    assert {f"model.attention={name}" for name in IMPLEMENTATIONS} <= found.keys()
    assert found[f"model.engine={COMPILED}"]["part"] == "engine"
    assert [choice for choice, each in found.items() if not each["works"]] == ["drafter=jump", "drafter=trained"]


def test_a_model_folder_in_another_dtype_is_tried_in_float32(tmp_path: Path, quick: None) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model("gemma2", vocab_size=len(tokenizer), layers=6).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found = findings(tmp_path / "run", "model=hf", f"model.path='{tmp_path}/model'", "model.dtype=bfloat16")
    assert (
        found["gemma2"]["reason"]
        == "3 layers with sliding attention, 3 layers with full attention, a window of 8 tokens"
    )
    assert found["first 4 layers"]["reason"].endswith("of the model's weights, in float32")
    assert found["drafter=pool"]["works"] and found["decoding.batch_size=2"]["works"]


def test_large_weights_are_not_read(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "READ_UP_TO", 1000)
    monkeypatch.setattr("selfdraft.app.options.schema_model.TinyModelConfig.load", None)
    found = findings(tmp_path / "run")
    assert "not tried, because its weights are large" in found["model.dtype=float32"]["reason"]
    assert found["first 4 layers"]["reason"].endswith("with random weights, in float32")
    assert found["drafter=jacobi"]["works"]


def test_what_does_not_fit_in_memory_is_a_line(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdraft.models.measuring.memory.available", lambda device: 1000)
    found = findings(tmp_path / "run")
    assert found["model.dtype=float32"]["reason"].startswith("memory: this run needs about")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        findings(tmp_path / "one", "model=hf", f"model.path='{tmp_path}/nowhere'")


def test_a_refused_family_is_a_line(tmp_path: Path) -> None:
    RwkvForCausalLM(RwkvConfig(vocab_size=300, hidden_size=8, num_hidden_layers=2)).save_pretrained(tmp_path / "rwkv")
    refused = findings(tmp_path / "two", "model=hf", f"model.path='{tmp_path}/rwkv'")
    assert list(refused)[-1] == "rwkv" and not refused["rwkv"]["works"]
    assert refused["rwkv"]["reason"].startswith("its forward takes no cache")


def test_whatever_fails_is_a_line_and_the_rest_goes_on(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("wires\ncrossed")

    monkeypatch.setattr(Suffix, "propose", broken)
    monkeypatch.setattr(Jacobi, "observe", tamper)
    found = findings(tmp_path / "run")
    assert found["drafter=suffix"]["reason"].startswith("it fails (RuntimeError: wires crossed)")
    assert found["drafter=jacobi"]["reason"].startswith("its text is not that of plain decoding")
    assert found["drafter=prompt_lookup"]["works"]


def test_a_refused_run_points_to_it(tmp_path: Path, error_line: ErrorLine) -> None:
    said = error_line("model=tiny", "model.family=mistral", "drafter=sparse_kv", "drafter.path.top_k=4")
    assert said.startswith("drafter.path.top_k: ")
    assert said.endswith("; task=doctor model=tiny model.family=mistral shows what works")


def test_a_mistake_that_says_nothing_about_the_model_does_not(error_line: ErrorLine) -> None:
    assert "task=doctor" not in error_line("model=tiny", "task=generate")


def test_the_pointer_repeats_what_says_which_model() -> None:
    typed = ["model=hf", "drafter=pool", "model.path=a folder", "hardware=gpu", "seed=1"]
    assert how_to_ask(typed) == "task=doctor model=hf model.path=a folder hardware=gpu shows what works"
    assert how_to_ask([]) == "task=doctor shows what works"


def test_messages_lose_what_the_line_says_already() -> None:
    said = str(UserError("model family 'x' (XModel) is not supported: it is odd"))
    assert checkup.short_reason(said, "x") == "it is odd"
    assert checkup.short_reason("model.engine=native: no compiler", "model.engine=native") == "no compiler"


def test_a_model_that_keeps_a_state_is_run_and_described(tmp_path: Path, error_line: ErrorLine) -> None:
    save_hybrid("lfm2", tmp_path / "model")
    model = ("model=hf", f"model.path='{tmp_path}/model'", "model.dtype=float32")
    ask = ("task=generate", "prompt=Hello", "decoding.max_new_tokens=8", "logger=none")
    assert "output: exact" in said_by(tmp_path / "one", *SMOKE, *model, *ask, "drafter=pool")
    assert "keeps a state in its layers, so it is run as a whole" in error_line(*model, *ask, "drafter=layer_skip")
    said = " ".join(said_by(tmp_path / "two", *SMOKE, *model, "task=doctor", "logger=none").split())
    assert "layers that keep a state (2 conv, 2 full attention)" in said
    assert "drafter=pool yes" in said and "drafter=swift no" in said and "trees no" in said
