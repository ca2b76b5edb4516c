"""Files of any content as a dataset: each is read and encoded, or refused with one printable line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pytest
from budget import SETTINGS, budget
from commands import ended
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import DEEP, as_json, values, words

from command_line import SMOKE
from forked import ForkedTrials
from selfdraft.app.options.schema_dataset import (
    AlpacaConfig,
    DatasetConfig,
    Gsm8kConfig,
    HubConfig,
    JsonlConfig,
    Math500Config,
    MbppConfig,
    MtBenchConfig,
    SpecBenchConfig,
    SpeedBenchConfig,
)
from selfdraft.app.terminal.errors import explain
from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line
from selfdraft.data import tables
from selfdraft.data.distilled import load_texts
from selfdraft.data.prompts import Prompt
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.tiny import tiny_tokenizer

KEYS = (
    "id",
    "question_id",
    "category",
    "turns",
    "prompt",
    "instruction",
    "question",
    "answer",
    "problem",
    "task_id",
    "test_list",
    "messages",
    "conversations",
    "text",
)

plain = st.text("abc xyz", min_size=1, max_size=8)
turns = st.lists(plain, min_size=1, max_size=3)
sound = st.fixed_dictionaries({}, optional={"category": st.sampled_from(["qa", "math", "", "x"]), "turns": turns}).map(
    lambda record: {"prompt": "a", **record}
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "content": st.one_of(plain, values),
        },
    )
    | st.builds(lambda who, text: {"from": who, "value": text}, st.sampled_from(["human", "gpt", "system"]), plain),
    max_size=4,
)
talks = st.dictionaries(st.sampled_from(["messages", "conversations", "prompt"]), messages, min_size=1, max_size=2)
odd = st.dictionaries(st.one_of(st.sampled_from(KEYS), words), st.one_of(values, plain, turns), max_size=5)
records = st.one_of(sound, sound, talks, odd, values)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """The content of a file: mostly records, a line each or in an array, then perhaps damaged."""
    found = draw(st.lists(records, max_size=5))
    shape = draw(st.sampled_from(["lines", "lines", "lines", "array", "indented", "deep", "digits", "bytes"]))
    if shape == "bytes":
        return draw(st.binary(max_size=60))
    if shape == "deep":
        found.append(0)
    lines = [as_json(record) for record in found]
    if shape == "deep":
        opening, closing = draw(st.sampled_from([("[", "]"), ('{"a":', "}"), ("[", ""), ("{", "")]))
        lines[-1] = f'{{"prompt": "a", "x": {opening * DEEP}1{closing * DEEP}}}'
    if shape == "digits":
        lines.append('{"prompt": "a", "id": ' + "9" * 5000 + "}")
    text = "\n".join(lines)
    if shape in ("array", "indented"):
        text = json.dumps(found, indent=2 if shape == "indented" else None)
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"])), "replace")
    return draw(st.sampled_from(DAMAGES))(draw, content)


def _as_it_is(draw: st.DrawFn, content: bytes) -> bytes:
    return content


def _cut(draw: st.DrawFn, content: bytes) -> bytes:
    return content[: draw(st.integers(0, len(content)))]


def _overwritten(draw: st.DrawFn, content: bytes) -> bytes:
    at = draw(st.integers(0, len(content)))
    return content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + draw(st.integers(0, 4)) :]


def _latin(draw: st.DrawFn, content: bytes) -> bytes:
    return content.replace(b"a", "ü".encode("latin-1"))


def _compressed(draw: st.DrawFn, content: bytes) -> bytes:
    return draw(st.sampled_from([gzip.compress, bz2.compress, lzma.compress]))(content)


def _windows(draw: st.DrawFn, content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


DAMAGES = [_as_it_is, _as_it_is, _as_it_is, _windows, _cut, _overwritten, _latin, _compressed]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tiny_tokenizer())


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def prompts_or_a_line(load: Any) -> Sequence[Any]:
    """What `load` returns; nothing where it refuses in one line."""
    try:
        return load()
    except UserError as error:
        line = explain(error)
        assert line is not None and line == one_line(line) and len(line) < 4000
        return []


def check(prompts: Sequence[Prompt], chat: Chat) -> None:
    """Prompts that were read can be encoded and written to result files, and their ids differ."""
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        texts = [prompt.id, prompt.category, prompt.family, prompt.turns, prompt.history]
        json.dumps(texts, ensure_ascii=False).encode("utf-8")
        assert chat.encode(prompt.beginning)
        for turn in prompt.turns:
            assert turn.strip()
            assert chat.encode([("user", turn)])


@settings(max_examples=budget(100, 1500), **SETTINGS)
@given(
    content=files(),
    suffix=st.sampled_from(["jsonl", "jsonl", "json", "txt", "parquet"]),
    prompt_field=st.one_of(st.none(), st.none(), st.sampled_from(KEYS)),
    options=st.fixed_dictionaries(
        {},
        optional={
            "per_category": st.integers(1, 2),
            "limit": st.integers(1, 3),
            "skip_per_category": st.integers(0, 2),
            "categories": st.lists(st.sampled_from(["qa", "math", "mt_bench", "uncategorized"]), max_size=1),
            "seed": st.integers(-3, 3),
            "shuffle": st.integers(-3, 3),
        },
    ),
)
def test_a_file_is_read_or_gives_one_clear_line(
    folder: Path, chat: Chat, content: bytes, suffix: str, prompt_field: str | None, options: dict[str, Any]
) -> None:
    path = folder / f"prompts.{suffix}"
    path.write_bytes(content)
    config: DatasetConfig = JsonlConfig(path=str(path), prompt_field=prompt_field, **options)
    check(prompts_or_a_line(config.load), chat)


@settings(max_examples=budget(40, 600), **SETTINGS)
@given(
    content=files(),
    named=st.sampled_from(
        [Gsm8kConfig, Math500Config, MbppConfig, MtBenchConfig, AlpacaConfig, SpecBenchConfig, SpeedBenchConfig]
    ),
)
def test_a_copy_of_a_named_dataset_is_read_or_gives_one_clear_line(
    folder: Path, chat: Chat, content: bytes, named: type[DatasetConfig]
) -> None:
    path = folder / "copy.jsonl"
    path.write_bytes(content)
    check(prompts_or_a_line(named(path=str(path)).load), chat)


@settings(max_examples=budget(6, 300), **SETTINGS)
@given(
    content=files(),
    suffix=st.sampled_from(["jsonl", "json", "csv", "txt", "parquet", "jsonl.gz", "zip", "tar", "arrow", "md"]),
    prompt_field=st.sampled_from(["prompt", "turns", "text"]),
)
def test_a_folder_is_read_or_gives_one_clear_line(
    folder: Path, chat: Chat, content: bytes, suffix: str, prompt_field: str
) -> None:
    # In a folder of its own each time: `datasets` remembers what a folder held.
    with tempfile.TemporaryDirectory(dir=folder) as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(name, "cache"))
        # A folder is read in another process before: once for both that read it here, and in a forked one.
        patch.setattr(tables, "_refuse_what_ends_the_process", cache(tables._refuse_what_ends_the_process))
        patch.setattr(tables, "subprocess", ForkedTrials(Path(name)))
        data = Path(name, "data")
        data.mkdir()
        (data / ("README.md" if suffix == "md" else f"train.{suffix}")).write_bytes(content)
        hub = HubConfig(name=str(data), split="train", prompt_field=prompt_field)
        check(prompts_or_a_line(hub.load), chat)
        for text in prompts_or_a_line(lambda: load_texts(data, lambda t: t.encode(), column=prompt_field)):
            assert text.answer


@settings(max_examples=budget(2, 60), **SETTINGS)
@given(prompt=words, category=words, name=words, damage=st.sampled_from(["", "", "]"]))
def test_a_whole_run_ends_with_status_0_or_one_clear_line(
    folder: Path, prompt: str, category: str, name: str, damage: str
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as here:
        record = {"id": name, "category": category, "turns": [prompt, "again"]}
        Path(here, "prompts.jsonl").write_text(as_json(record) + damage, encoding="utf-8")
        few = ["dataset=jsonl", "dataset.path=prompts.jsonl", "decoding.max_new_tokens=2"]
        ended([*SMOKE, *few], Path(here)).refuse_anything_but_success_or_a_line()
