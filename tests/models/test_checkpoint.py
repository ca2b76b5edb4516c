"""Untrusted model folders: damaged, huge and hostile ones give one clear line, and nothing in them runs."""

from __future__ import annotations

import builtins
import json
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.models.loading.checkpoint import MAX_BYTES, MAX_TEMPLATE
from selfdraft.models.loading.loading import load_pretrained, load_random, outline_pretrained
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer
from selfdraft.models.measuring.memory import needed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "model")


@pytest.fixture
def fresh(sound: Path, tmp_path: Path) -> Callable[[], Path]:
    """Replaces what the case before has damaged by an undamaged folder."""

    def copied() -> Path:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        return shutil.copytree(sound, tmp_path / "model")

    return copied


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def refusal(folder: Path) -> str:
    """The one line, before the weights are read or after."""
    with pytest.raises(UserError) as caught:
        needed(outline_pretrained(str(folder)), torch.float32, CPU, rows=1, packed=True, new_tokens=9, certify=True)
        load_pretrained(str(folder), "float32", CPU)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert str(caught.value).startswith((f"model.path={folder}: ", "model family "))
    return str(caught.value)


# --- config.json ------------------------------------------------------------------------------------------------------


def test_an_invalid_number_is_refused(folder: Path) -> None:
    sound = (folder / "config.json").read_text()
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    for key, value in product(keys, (None, "4", 1.5, [1], {"a": 1}, -3, 0)):
        (folder / "config.json").write_text(sound)
        change(folder / "config.json", **{key: value})
        with naming(key, repr(value)):
            assert "Traceback" not in refusal(folder)


def test_an_entry_of_another_type_is_refused_and_the_file_named(folder: Path) -> None:
    sound = (folder / "config.json").read_text()
    for key, value in (
        ("vocab_size", "4"),
        ("num_key_value_heads", 0),
        ("head_dim", 0),
        ("rope_parameters", [1]),
        ("layer_types", 3),
        ("model_type", [1]),
        ("dtype", "4"),
        ("dtype", 7),
        ("eos_token_id", "x"),
        ("hidden_act", None),
        ("quantization_config", "x"),
    ):
        (folder / "config.json").write_text(sound)
        change(folder / "config.json", **{key: value})
        with naming(key, repr(value)):
            assert "(config.json: " in refusal(folder)


def test_an_invalid_end_of_sequence_without_a_generation_config_is_refused(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    for value in (2**40, [2**40], [0, -(2**31)]):
        change(folder / "config.json", eos_token_id=value)
        with naming(value):
            assert "eos_token_id" in refusal(folder)


DAMAGED_TEXTS = ["", "[]", "null", "3", "{", "[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}"]


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"],
)
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    for text in DAMAGED_TEXTS:
        (folder / name).write_text(text)
        with naming(text[:9]):
            assert f"({name}: " in refusal(folder)


def test_a_file_that_is_not_utf_8_is_refused(fresh: Callable[[], Path]) -> None:
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        folder = fresh()
        (folder / name).write_bytes(bytes(range(256)))
        with naming(name):
            assert "utf-8" in refusal(folder)


def test_more_layers_than_any_model_has_are_not_built(fresh: Callable[[], Path]) -> None:
    for entry in (
        {"num_hidden_layers": 200_000},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"vision": [{"n_layers": 10**400}]},
        {"layer_types": ["full_attention"] * 50_000},
    ):
        folder = fresh()
        change(folder / "config.json", **entry)
        for load in (outline_pretrained, lambda path: load_random(path, 0, "float32", CPU)):
            begin = time.monotonic()
            with naming(entry), pytest.raises(UserError, match="more than 2000 layers are not loaded"):
                load(str(folder))
            assert time.monotonic() - begin < 20, entry


def test_a_quantized_checkpoint_names_its_missing_library(folder: Path) -> None:
    for method in ("gptq", "awq", "bitsandbytes", "compressed-tensors"):
        change(folder / "config.json", quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
        with naming(method):
            assert "pip install" in refusal(folder)


# --- what would run ---------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self) -> tuple:
        return open, (self.path, "w")

    def __init__(self, path: Path) -> None:
        self.path = str(path)


def index(folder: Path, text: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / "ran")))


def pickled_in_an_index(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / "ran")))
    index(folder, '{"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}')


def pickled_beside(folder: Path) -> None:
    """Valid weights, and pickles under every other file name."""
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "model.ckpt"):
        (folder / name).write_bytes(pickle.dumps(Payload(folder / "ran")))


def own_code(folder: Path) -> None:
    change(
        folder / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, model_type="evil"
    )
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def kernels(folder: Path) -> None:
    change(folder / "config.json", attn_implementation="somebody/kernels")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somebody/else"}')


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (pickled, "the weights are pickles (pytorch_model.bin), which can hold code and are never loaded"),
        (pickled_in_an_index, "it names 'pytorch_model.bin', which is no safetensors file"),
        (pickled_beside, None),
        (own_code, "custom code"),
        (kernels, "config.json asks for code of a hub (attn_implementation=somebody/kernels)"),
        (adapter, "PEFT adapter"),
    ],
)
def test_no_file_of_a_model_folder_is_unpickled_or_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hostile: Callable[[Path], None], reason: str | None
) -> None:
    hostile(folder)
    opened: list[str] = []
    unpickled: list[object] = []
    watching = [True]

    def watch(event: str, args: tuple) -> None:
        if watching and event == "open":
            opened.append(str(args[0]))
        if watching and event == "pickle.find_class":
            unpickled.append(args)

    sys.addaudithook(watch)  # for good: there is no way to take it off
    monkeypatch.setattr(torch, "load", lambda *a, **k: unpickled.append(a))
    monkeypatch.setattr(builtins, "input", lambda *a: "y")  # transformers would ask whether to run the code
    try:
        if reason is None:
            load_pretrained(str(folder), "float32", CPU)
        else:
            assert reason in refusal(folder)
    finally:
        watching.clear()
    here = {Path(name).name for name in opened if name.startswith(str(folder))}
    assert "config.json" in here or reason == "PEFT adapter"
    assert unpickled == [] and not (folder / "ran").exists() and "evil" not in sys.modules
    assert not {name for name in here if not name.endswith((".json", ".safetensors", ".jinja", ".model"))}


# --- weights and sizes ------------------------------------------------------------------------------------------------


def test_a_damaged_index_is_named(folder: Path) -> None:
    index(folder, "")
    in_it = (
        "",
        "[]",
        "{}",
        '{"weight_map": [1]}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
    )
    for text in in_it:
        (folder / "model.safetensors.index.json").write_text(text)
        with naming(text):
            assert "(model.safetensors.index.json: " in refusal(folder)


def test_weights_of_other_shapes_are_named(folder: Path) -> None:
    change(folder / "config.json", hidden_size=64, head_dim=16)
    assert "(weights: their shapes are not those that config.json asks for)" in refusal(folder)


def test_an_end_of_sequence_outside_the_vocabulary_is_refused(folder: Path) -> None:
    for eos in ('"x"', '["x"]', "1.5", "[[1]]", "99999999999999999999999", "true"):
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {eos}}}')
        with naming(eos):
            assert "(generation_config.json: " in refusal(folder)


def test_a_file_larger_than_any_real_one_is_not_read(fresh: Callable[[], Path]) -> None:
    for name, limit in {"chat_template.jinja": MAX_TEMPLATE, **MAX_BYTES}.items():
        folder = fresh()
        with (folder / name).open("ab") as file:
            file.truncate(limit + 1)  # a hole: it takes no room on the disk
        with naming(name):
            said = refusal(folder)
            assert f"{name} has " in said and "are not read" in said


@pytest.mark.slow
def test_a_template_that_fails_is_refused_before_the_weights_are_read(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "model.safetensors").unlink()
    for template in ("{{ raise_exception('no') }}", "{% for %}", [{"name": "tool_use", "template": "x"}], 7):
        change(folder / "tokenizer_config.json", chat_template=template)
        with naming(template):
            assert "chat template" in refusal(folder)


def test_an_undamaged_folder_is_loaded(folder: Path) -> None:
    """Or else the refusals above would prove nothing."""
    assert load_pretrained(str(folder), "float32", CPU).eos == {tiny_tokenizer().eos_token_id}
