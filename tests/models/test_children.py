"""The scripts of engines whose packages tests do not install: they are run here with made-up packages.

The made-up packages have only the names that the scripts use, as documented; the engines themselves are compared in
experiments/engines.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.reference.others import CHILDREN, ENGINES, OtherEngine

Answer = Callable[[list[int]], tuple[list[int], float]]
GIVEN: dict[str, Any] = {"source": "a", "tokens": 6, "positions": 12, "eos": [], "threads": 1, "lookup": False}
PROMPT = [5, 9, 5, 9, 5]


def answerer(script: str, settings: dict[str, Any]) -> Answer:
    """Return what a script's `load` makes, as child.py does."""
    spec = importlib.util.spec_from_file_location("engine", CHILDREN / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(settings)


@dataclass
class Onnx:
    """Counts up from the prompt's last token, and notes what it is given."""

    overlays: list[dict] = field(default_factory=list)
    search: dict = field(default_factory=dict)
    speculative: dict = field(default_factory=dict)

    def module(self) -> ModuleType:
        made, onnx = ModuleType("onnxruntime_genai"), self

        class Config:
            def __init__(self, folder: str) -> None:
                assert folder == "a"

            def overlay(self, text: str) -> None:
                onnx.overlays.append(json.loads(text))

        class GeneratorParams:
            def __init__(self, model: object) -> None:
                onnx.speculative = {}

            def set_search_options(self, **options: object) -> None:
                onnx.search = options

            def set_speculative_options(self, **options: object) -> None:
                onnx.speculative = options

        class Generator:
            def __init__(self, model: object, params: object) -> None:
                self.tokens: list[int] = []

            def append_tokens(self, tokens: Any) -> None:
                assert tokens.dtype == "int32"
                self.tokens = tokens.tolist()

            def is_done(self) -> bool:
                ends = onnx.overlays[0]["model"]["eos_token_id"]
                return self.tokens[-1] in ends or len(self.tokens) == onnx.search["max_length"]

            def generate_next_token(self) -> None:
                self.tokens.append(self.tokens[-1] + 1)

            def get_next_tokens(self) -> list[int]:
                return self.tokens[-1:]

        for each in (Config, GeneratorParams, Generator):
            setattr(made, each.__name__, each)
        made.Model = lambda config: object()  # type: ignore[attr-defined]
        return made


@pytest.mark.parametrize(
    ("more", "output"),
    [({}, [6, 7, 8, 9, 10, 11]), ({"eos": [8, 40]}, [6, 7, 8]), ({"positions": 7}, [6, 7])],
)
def test_onnx_genai_decodes_greedily_up_to_our_limits(
    more: dict, output: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = Onnx()
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", onnx.module())
    answer = answerer("run_onnx_genai.py", {**GIVEN, **more})
    for _ in range(2):
        ids, first_s = answer(PROMPT)
        assert ids == output and first_s > 0
    assert onnx.overlays[0]["model"]["decoder"]["session_options"] == {"intra_op_num_threads": 1}
    assert onnx.search["do_sample"] is False and onnx.speculative == {}


def test_onnx_genai_drafts_by_its_own_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = Onnx()
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", onnx.module())
    answerer("run_onnx_genai.py", {**GIVEN, "lookup": True})(PROMPT)
    assert onnx.speculative == {"ngram_size": 3, "max_draft_tokens": 4}


@dataclass
class Economized:
    """Greedy decoding of the model, which asks `stop` after each token that is not the last one possible."""

    model: Any

    def decode(self, ids: torch.Tensor, most: int, stop: Callable[[torch.Tensor], bool]) -> Any:
        row = ids
        for left in range(most - 1, -1, -1):
            row = torch.cat([row, self.model(row[None]).logits[0, -1:].argmax(-1)])
            if left and stop(row):
                break
        self.tokens = row[len(ids) :]
        return self


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama", vocab_size=64, max_positions=64).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def economize(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    made, lookup, given = ModuleType("economize"), ModuleType("economize.techniques.lookup"), {}

    def apply(model: Any, config: dict, *, decoding: dict) -> Economized:
        given.update(config, **decoding, dtype=model.dtype)
        return Economized(model)

    made.apply, made.DecodeConfig, lookup.LookupConfig = apply, dict, dict  # type: ignore[attr-defined]
    for module in (made, lookup, ModuleType("economize.techniques")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    threads = torch.get_num_threads()
    yield given
    torch.set_num_threads(threads)


@torch.inference_mode()
def test_economize_decodes_the_stock_model_of_the_folder(folder: Path, economize: dict[str, Any]) -> None:
    settings = {**GIVEN, "source": str(folder), "positions": 64, "dtype": "float64", "revision": None}
    output, first_s = answerer("run_economize.py", settings)(PROMPT)
    assert economize == {"max_ngram": 3, "cycle_length": 6, "lossless": True, "dtype": torch.float64}
    model = tiny_model("llama", vocab_size=64, max_positions=64).double()
    text = torch.tensor([PROMPT + output])
    assert len(output) == 6 and first_s > 0
    assert model(text).logits[0, len(PROMPT) - 1 : -1].argmax(-1).tolist() == output
    ended, _ = answerer("run_economize.py", {**settings, "eos": [output[1]]})(PROMPT)
    assert ended == output[: output.index(output[1]) + 1]
    assert answerer("run_economize.py", {**settings, "positions": 6})(PROMPT)[0] == output[:1]


@pytest.mark.slow
def test_economize_itself_where_it_is_installed(folder: Path) -> None:
    pytest.importorskip("economize")
    engine = OtherEngine(
        "economize_lookup",
        folder,
        max_new_tokens=6,
        positions=64,
        eos=[],
        threads=1,
        settings={"dtype": "float32", "revision": None},
    )
    answer = engine.decode(PROMPT)
    assert (len(answer.output), answer.decoded, answer.failed) == (6, 5, "")
    engine.close()
    assert ENGINES["economize_lookup"].lookup
