"""Damaged model folders: each is loaded and encodes a prompt, or is refused with one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from budget import SETTINGS, budget
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdraft.core.errors import UserError
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import load_pretrained, outline_pretrained
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer
from selfdraft.models.measuring.memory import needed

CPU = torch.device("cpu")
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
TEMPLATE = "chat_template.jinja"

VALUES = st.sampled_from(
    [None, 0, -1, 1.5, "x", "", [], {}, [1], {"a": 1}, True, 10**30, 2**31, 10**6, "<|im_end|>", "a/b"]
) | st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))

Damage = Callable[[bytes], bytes]


@st.composite
def bytes_damaged(draw: st.DrawFn) -> Damage:
    """Cut off, cut out, repeated or overwritten, at a place that is a share of the file."""
    share, length = draw(st.floats(0, 1)), draw(st.integers(1, 60))
    how, junk = draw(st.sampled_from(["end", "out", "again", "over"])), draw(st.binary(min_size=1, max_size=8))

    def damage(whole: bytes) -> bytes:
        at = int(share * len(whole))
        head, part, tail = whole[:at], whole[at : at + length], whole[at + length :]
        return {"end": head, "out": head + tail, "again": head + 3 * part + tail, "over": head + junk + tail}[how]

    return damage


@st.composite
def entry_changed(draw: st.DrawFn) -> Damage:
    """A value of a JSON file, somewhere within it, is another one."""
    number, value = draw(st.integers(0, 500)), draw(VALUES)

    def damage(whole: bytes) -> bytes:
        try:
            content = json.loads(whole)
        except ValueError:
            return whole
        places = list(entries(content))
        holder, key = places[number % len(places)]
        holder[key] = value
        return json.dumps(content).encode()

    return damage


def entries(content: Any) -> Any:
    """Every (container, key) of nested JSON, a few of each."""
    keys = content if isinstance(content, dict) else range(min(len(content), 10))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from entries(content[key])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer), layers=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@given(
    name=st.sampled_from([*FILES, TEMPLATE]),
    damages=st.lists(bytes_damaged() | entry_changed(), min_size=1, max_size=2),
)
@settings(max_examples=budget(25, 400), **SETTINGS)
def test_a_damaged_folder_is_loaded_or_gives_one_clear_line(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, name: str, damages: list[Damage]
) -> None:
    folder = shutil.copytree(sound, tmp_path_factory.mktemp("damaged") / "model")
    content = (folder / name).read_bytes()
    for damage in damages:
        content = damage(content)
    (folder / name).write_bytes(content)
    try:
        outline = outline_pretrained(str(folder))
        needed(outline, torch.float32, CPU, rows=1, packed=True, new_tokens=5, certify=True)
        loaded = load_pretrained(str(folder), "float32", CPU)
        Target(loaded.model)
        Chat(loaded.tokenizer).encode([("user", "Who?"), ("assistant", "I."), ("user", "Why?")])
    except UserError as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 600
    finally:
        shutil.rmtree(folder.parent)
