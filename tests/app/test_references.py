"""Decoders outside SelfDraft: what each one reads, which weights that has, and what is refused before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import ErrorLine, read_result, run_here
from naming import naming
from selfdraft.app.options.schema_model import (
    EmbeddedModelConfig,
    ModelConfig,
    PretrainedModelConfig,
    RandomModelConfig,
)
from selfdraft.app.options.schema_tasks import CompareConfig
from selfdraft.app.options.schemas import Config, DecodingConfig
from selfdraft.app.runs import references
from selfdraft.app.runs.references import reference_for
from selfdraft.core.errors import UserError
from selfdraft.decoding.certify import Certifier
from selfdraft.models.loading.loading import load_tiny
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.reference.others import ENGINES, OTHERS
from selfdraft.models.reference.stock import IN_4_BITS, OTHER_VALUES, SAME_VALUES, StockGenerate, StockGeneration

CPU = torch.device("cpu")
LOADED = load_tiny("llama", 0, "float32", CPU)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the process of the last engine was started with, without starting it."""
    noted: dict[str, Any] = {}

    class Noted:
        def __init__(self, name: str, source: object, **options: object) -> None:
            noted.clear()
            noted.update(options, name=name, source=str(source))

    monkeypatch.setattr(references, "OtherEngine", Noted)
    monkeypatch.setattr(references, "smollm2_135m", lambda: Path("/embedded"))
    monkeypatch.setattr(references, "smollm2_135m_gguf", lambda: Path("/embedded.gguf"))
    return noted


def made(name: str, model: ModelConfig, device: torch.device = CPU, **options: str) -> object:
    task = CompareConfig(contenders=["none", name], **options)
    return reference_for(
        name, LOADED, Config(task=task, model=model, decoding=DecodingConfig(max_new_tokens=7)), device
    )


def embedded(dtype: str = "float32", weights: str = "same") -> EmbeddedModelConfig:
    return EmbeddedModelConfig(dtype=dtype, weights=weights)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "genai_config.json").write_text("{}")
    return tmp_path


def test_a_gguf_file_has_our_values_only_where_ours_are_not_rounded_again(
    given: dict[str, Any], tmp_path: Path
) -> None:
    for dtype, weights, known in [
        ("float32", "same", IN_4_BITS),
        ("float32", "int4", SAME_VALUES),
        ("float32", "int8", OTHER_VALUES),
        ("bfloat16", "same", OTHER_VALUES),
    ]:
        with naming((dtype, weights)):
            made("llama_cpp", embedded(dtype, weights), python="/a/python")
            assert (given["source"], given["weights"], given["python"]) == ("/embedded.gguf", known, "/a/python")
            assert given["max_new_tokens"] == 7 and given["eos"] == sorted(LOADED.eos)
    (tmp_path / "a.gguf").touch()
    made("openvino", embedded(), gguf=f"{tmp_path}/a.gguf")
    assert (given["source"], given["weights"]) == (f"{tmp_path}/a.gguf", OTHER_VALUES)


def test_the_values_of_a_gguf_file_of_the_user_judge_its_engines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.gguf").touch()
    names = ["transformers_greedy", "llama_cpp", "openvino_prompt_lookup", "onnx_genai"]

    def arbiters(gguf: str | None) -> dict[str, Any]:
        return references.arbiters_for(names, Config(task=CompareConfig(gguf=gguf), model=embedded()))

    assert arbiters(None) == {}  # its texts are compared with ours
    assert set(found := arbiters(f"{tmp_path}/a.gguf")) == {"llama_cpp", "openvino_prompt_lookup"}
    assert found["llama_cpp"].endswith("a.gguf is no GGUF file")
    monkeypatch.setattr(references, "read_gguf", lambda file: tiny_model())
    found = arbiters(f"{tmp_path}/a.gguf")
    assert isinstance(found["llama_cpp"], Certifier) and found["llama_cpp"] is found["openvino_prompt_lookup"]


def test_economize_reads_our_own_folder_in_our_dtype(given: dict[str, Any], folder: Path) -> None:
    hf = PretrainedModelConfig(path=str(folder), dtype="bfloat16", revision="v2")
    int4 = PretrainedModelConfig(path=str(folder), dtype="float32", weights="int4")
    for model, source, known, settings in [
        (embedded("bfloat16"), "/embedded", SAME_VALUES, {"dtype": "bfloat16", "revision": None}),
        (embedded("float32", "int4"), "/embedded", SAME_VALUES, {"dtype": "float32", "revision": None}),
        (embedded("bfloat16", "int4"), "/embedded", OTHER_VALUES, {"dtype": "bfloat16", "revision": None}),
        (hf, str(folder), SAME_VALUES, {"dtype": "bfloat16", "revision": "v2"}),
        (int4, str(folder), OTHER_VALUES, {"dtype": "float32", "revision": None}),
    ]:
        with naming((source, settings)):
            made("economize_lookup", model)
            assert (given["source"], given["weights"], given["settings"]) == (source, known, settings)


def test_onnx_genai_reads_the_folder_that_is_given(given: dict[str, Any], folder: Path) -> None:
    made("onnx_genai", embedded(), onnx=str(folder))
    assert (given["source"], given["weights"], given["settings"]) == (str(folder), OTHER_VALUES, {})


def test_what_cannot_be_read_is_one_line(given: dict[str, Any], tmp_path: Path, folder: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "genai_config.json").write_text(r'{"model": {"custom_ops_l\u0069brary": "a.so"}}')
    for name, model, options, said in [
        ("llama_cpp", embedded(), {"gguf": "/no/where"}, r"task\.gguf=/no/where: there is no such file"),
        ("openvino", PretrainedModelConfig(path="a/b"), {}, r"openvino reads a GGUF file: give that of your model"),
        (
            "onnx_genai",
            embedded(),
            {"onnx": "/no/where"},
            r"task\.onnx=/no/where: genai_config\.json cannot be read \(No",
        ),
        (
            "onnx_genai",
            embedded(),
            {"onnx": str(code)},
            r"task\.onnx=.*: genai_config\.json asks for custom_ops_library",
        ),
        ("economize_lookup", PretrainedModelConfig(path="/no/where"), {}, r"model\.path=/no/where: no such folder"),
        (
            "economize_lookup",
            RandomModelConfig(path="a/b"),
            {},
            r"economize_lookup reads a model folder, and model=random",
        ),
    ]:
        with naming((name, options)), pytest.raises(UserError, match=f"^{said}"):
            made(name, model, **options)
    for name in ENGINES:
        with pytest.raises(UserError, match=f"^{name} is compared on a CPU only$"):
            made(name, embedded(), torch.device("cuda"), onnx=str(folder))


def test_options_that_a_contender_needs_are_asked_for_first(error_line: ErrorLine) -> None:
    for options, said in [
        (["task.contenders=[vllm]"], "vllm: give the address of its server, e.g. task.server=http://localhost:8000/v1"),
        (["task.contenders=[pool,' vllm']", "task.server=ftp://a"], "task.server=ftp://a: no address of http or https"),
        (["task.contenders=[onnx_genai_prompt_lookup]"], "onnx_genai_prompt_lookup reads a folder of its own format: "),
        (
            ["task.contenders=[vllm]", "task.server=http://127.0.0.1:9/v1"],
            "task.server=http://127.0.0.1:9/v1: Connection refused; give the address of a running server",
        ),
        (["task.contenders=[economize_lookup]"], "economize_lookup reads a model folder, and model=tiny has none"),
    ]:
        with naming(options):
            assert error_line("task=compare", *options).startswith(said)


def test_every_name_is_a_contender_and_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    described = CompareConfig.__dataclass_fields__["contenders"].metadata["help"]
    commands = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    for name in OTHERS:
        assert name in described and f"`{name}`" in commands
    assert isinstance(made("transformers_greedy", embedded()), StockGenerate)


def test_a_server_is_a_row_that_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Made:
        weights, judged, load_s, peak_memory_mb = "unknown", False, 0.0, None

        def __init__(self, server: str, **options: object) -> None:
            assert server == "http://host/v1"

        def decode(self, prompt: list[int]) -> StockGeneration:
            return StockGeneration([7, 8, 9], 2, 0.5, 1.0)

    monkeypatch.setattr(references, "ServedEngine", Made)
    options = ("task=compare", "task.contenders=[vllm]", "task.server=http://host/v1", "dataset.limit=1")
    run_here(tmp_path, "experiment=smoke", "hardware.threads=1", *options, "decoding.max_new_tokens=3")
    found = read_result(tmp_path)["contenders"]["vllm"]
    assert found["decode_tokens_per_s"] == 4.0
    (line, *_) = (tmp_path / "prompts.jsonl").read_text().splitlines()
    assert json.loads(line)["contenders"]["vllm"]["lossless"]["verdict"] == "uncertified"
