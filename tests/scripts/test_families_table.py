"""scripts/families.py: a family that is driven, one that is refused, and what goes wrong is a row."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as IMAGES,
)
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING as MASKED,
)
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING as SEQ2SEQ,
)
from transformers import BartForCausalLM, BartForConditionalGeneration, BertLMHeadModel

from script_module import script_module
from selfdraft.core.errors import UserError
from selfdraft.models.forward.targets import target_of
from selfdraft.models.loading.small import families, small_config, small_model

SAMPLE = ["qwen3_moe", "deepseek_v3", "gpt_oss", "cohere2"]


@pytest.fixture
def script() -> ModuleType:
    return script_module("families")


def test_a_driven_and_a_refused_family_are_rows(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PROMPTS", script.PROMPTS[:1])
    monkeypatch.setattr(script, "NEW_TOKENS", 10)
    page = tmp_path / "families.md"
    assert script.main(["llama", "mamba", "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "python scripts/families.py llama mamba" in text
    assert "Of 2 families (model types), **1 work**, 1 are refused with a reason" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| *llama* |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert len(cells) == len(script.COLUMNS)
    assert cells[0] == "1.00" and all(float(cell) > 0 for cell in cells)
    assert "| mamba | it keeps a state in its layers, and its forward goes on from a text one token at a time" in text


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_of_the_families_is_lossless(script: ModuleType, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """`make families` tries them all."""
    monkeypatch.setattr(script, "NEW_TOKENS", 8)
    row = script.tried(family)
    assert row.kind == "driven"
    unlike = {name: cell for name, cell in row.cells.items() if not cell[0].isdigit()}
    assert unlike.keys() <= {"width_skip", "pseudo_tokens"}
    assert all(cell.startswith("refused: ") for cell in unlike.values())


def test_a_crash_or_an_endless_loop_is_a_row(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "tried", lambda family: os._exit(3))
    assert script.in_its_own_process("llama").reason == "the process ended with status 3"
    monkeypatch.setattr(script, "tried", lambda family: time.sleep(60))
    monkeypatch.setattr(script, "SECONDS", 0)
    assert script.in_its_own_process("llama").reason == "it took more than 0 seconds"


def test_an_exception_of_transformers_is_a_row(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(family: str) -> None:
        raise RuntimeError("sizes | do not fit\nat all")

    monkeypatch.setattr(script, "small_model", broken)
    row = script.tried("llama")
    assert (row.kind, row.reason) == ("not tried", "RuntimeError: sizes / do not fit")


def test_the_page_says_rightly_which_families_are_left_out(script: ModuleType) -> None:
    said = script.WHICH
    for name, mapping in (("t5", SEQ2SEQ), ("m2m_100", SEQ2SEQ), ("distilbert", MASKED), ("deberta", MASKED)):
        assert name in model_types(mapping) and name not in families() and name in spelled(said)
    for name in ("llava", "qwen2_vl"):
        assert name in model_types(IMAGES) and name not in families() and name in spelled(said)
    for name in ("bart", "mbart", "marian", "pegasus"):
        assert name in model_types(SEQ2SEQ) and name in families() and name in spelled(said)
    for name in ("whisper", "bert", "electra", "gemma3", "llama4"):
        assert name in families() and name in spelled(said)
    bart = small_model("bart")
    assert isinstance(bart, BartForCausalLM) and bart.config.is_encoder_decoder is False
    assert small_config("bert").is_decoder is True
    assert "\n".join(said.splitlines()) in script.page([script.Row("mamba", "refused", "it keeps a state")], "command")


def test_what_the_page_says_is_refused_is_refused() -> None:
    config = small_config("bart")
    config.is_encoder_decoder = True
    with pytest.raises(UserError, match="it is an encoder-decoder"):
        target_of(BartForConditionalGeneration(config).eval())
    config = small_config("bert")
    config.is_decoder = False
    with pytest.raises(UserError, match="it is an encoder, whose tokens see later ones, too"):
        target_of(BertLMHeadModel(config).eval())


def model_types(mapping: Mapping[type, type]) -> set[str]:
    return {config.model_type for config in mapping}


def spelled(text: str) -> set[str]:
    """The names in a text as model types are spelled: "Qwen2-VL" and "Gemma 3" become qwen2_vl and gemma3."""
    names = {name.lower().replace(" ", "") for name in re.findall(r"\w[\w-]*(?: \d)?", text)}
    return names | {name.replace("-", "_") for name in names}


def test_a_refusal_is_said_even_where_generate_fails(script: ModuleType) -> None:
    row = script.tried("xlnet")
    assert (row.kind, row.reason[:28]) == ("refused", "its forward takes no cache, ")


def test_families_that_write_no_text_are_rows_with_the_reason(script: ModuleType) -> None:
    row = script.tried("musicgen")
    assert (row.kind, row.reason) == ("not tried", "it writes no text but sound, as several codes at once")
    assert script.tried("gemma4_assistant").reason.startswith("it writes no text by itself")


def test_the_reason_is_the_first_line_with_text(script: ModuleType) -> None:
    assert script.first_line(ImportError("\n \ntimm is missing\nhere")) == "timm is missing"


def test_wrong_texts_and_refused_drafters_are_cells(script: ModuleType) -> None:
    names = script.COLUMNS
    cells = dict.fromkeys(names, "1.50") | {
        "plain": "**differs**",
        "swift": "refused: no MLP of model family 'here'",
        "pool": "refused: no MLP of model family 'there'",
    }
    text = script.page([script.Row("here", cells=cells)], "python scripts/families.py here")
    assert "| here | **differs** | 1.50 | refused (1) | 1.50 | refused (1) |" in text
    assert text.count("no MLP") == 1 and "1. no MLP of model family …" in text
    assert f"Of {len(names)} cells, {len(names) - 3} are right, 1 are wrong and 2 are refused." in text


def test_an_unknown_family_is_one_line(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["lama"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("families: there is no family 'lama' in transformers ")


def test_an_unwritable_file_is_refused_before_any_family_is_tried(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "in_its_own_process", None)  # calling it would be a TypeError
    assert script.main(["llama", "--out", str(tmp_path)]) == 2
    assert script.main(["llama", "--out", str(tmp_path / "nowhere" / "x.md")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"families: --out {tmp_path}: there is a folder where a file is needed"
    assert second == f"families: --out {tmp_path}/nowhere/x.md: the folder {tmp_path}/nowhere does not exist"


def test_a_wrong_text_ends_with_status_1(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = script.Row("llama", cells=dict.fromkeys(script.COLUMNS, "1.50") | {"pool": "**differs**"})
    monkeypatch.setattr(script, "in_its_own_process", lambda family: row)
    with pytest.raises(SystemExit) as ended:
        script.main(["llama", "--out", str(tmp_path / "x.md")])
    assert ended.value.code == 1 and "**differs**" in (tmp_path / "x.md").read_text()
