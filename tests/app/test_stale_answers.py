"""A run is resumed only with the same prompts (by content), model and adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import SMOKE, read_lines, read_result, run_here, said_by, write_prompts
from selfdraft.core.errors import UserError
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer
from selfdraft.models.trained.adapter import Adapter

A = {"id": "a", "category": "qa", "prompt": "What is one and one?"}
B = {"id": "b", "category": "qa", "turns": ["What is two and two?", "And three?"]}
C = {"id": "c", "category": "rag", "prompt": "What is four?"}
EVALUATE = ("drafter=none",)
DISTILL = ("task=distill_data", "drafter=none", "decoding.batch_size=2")


def options(path: Path) -> tuple[str, ...]:
    return (
        *SMOKE,
        "dataset=jsonl",
        f"dataset.path={path}",
        "dataset.per_category=null",
        "decoding.max_new_tokens=6",
    )


def save_model(folder: Path, seed: int) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer), seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_adapter(folder: Path, size: int) -> None:
    settings = {"scale": 1.0, "skip_attention": [1], "skip_mlp": [1]}
    Adapter("test", settings, {"vocabulary": torch.arange(size)}).write(folder)


def lines_of(folder: Path, name: str) -> dict[tuple[str, int], dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({(line["id"], line["turn"]) for line in lines}) == len(lines)
    return {(line["id"], line["turn"]): line for line in lines}


@pytest.mark.parametrize(("task", "name"), [(EVALUATE, "prompts"), (DISTILL, "texts")])
def test_edited_prompts_are_decoded_again_and_removed_ones_not_counted(
    tmp_path: Path, task: tuple[str, ...], name: str
) -> None:
    path, folder, anew = tmp_path / "prompts.jsonl", tmp_path / "run", tmp_path / "anew"
    write_prompts(path, A, B, C)
    run_here(folder, *options(path), *task)
    before = lines_of(folder, name)
    write_prompts(path, {**A, "prompt": "What else?"}, {**B, "turns": [B["turns"][0], "And five?"]})
    said = " ".join(said_by(folder, *options(path), *task).split())
    assert "3 turns in" in said  # a, the second turn of b, and c
    assert ": 1 of 2 prompts were finished before" in said

    run_here(anew, *options(path), *task)
    after, expected = lines_of(folder, name), lines_of(anew, name)
    assert after.keys() == expected.keys() == {("a", 0), ("b", 0), ("b", 1)}
    for which, line in after.items():
        assert (line["prompt_ids"], line["output_ids"]) == (
            expected[which]["prompt_ids"],
            expected[which]["output_ids"],
        )
    assert after["b", 0] == before["b", 0]  # kept, not measured again
    assert read_result(folder)["prompts"] == 2
    stale = lines_of(folder, f"{name}.stale")
    assert stale == {which: before[which] for which in (("a", 0), ("b", 1), ("c", 0))}  # nothing is thrown away


def test_an_edited_first_turn_also_decodes_the_second_again_and_an_edited_category_is_used(tmp_path: Path) -> None:
    path, folder = tmp_path / "prompts.jsonl", tmp_path / "run"
    write_prompts(path, B)
    run_here(folder, *options(path), *EVALUATE)
    write_prompts(path, {**B, "turns": ["Quite another question", B["turns"][1]], "category": "rag"})
    run_here(folder, *options(path), *EVALUATE)
    first, second = read_lines(folder)
    assert second["prompt_ids"][: len(first["prompt_ids"])] == first["prompt_ids"]
    write_prompts(path, {**B, "turns": ["Quite another question", B["turns"][1]], "category": "qa"})
    run_here(folder, *options(path), *EVALUATE)  # nothing is decoded again
    assert read_lines(folder)[0]["output_ids"] == first["output_ids"]
    assert list(read_result(folder)["by_category"]) == ["qa"]


def test_the_prompts_of_a_calibration_must_be_the_same(tmp_path: Path) -> None:
    path, folder = tmp_path / "prompts.jsonl", tmp_path / "run"
    write_prompts(path, A, C)
    task = ("task=calibrate", "drafter=layer_skip", "calibrate.method=random", "calibrate.trials=2")
    task = (*options(path), *task, "calibrate.prompts=2", "calibrate.tokens=8", "calibrate.check=0")
    run_here(folder, *task)
    run_here(folder, *task)
    write_prompts(path, A, {**C, "prompt": "What is five?"})
    before = (folder / "result.json").read_bytes()
    with pytest.raises(UserError, match=r"begun with another content of prompts.*choose another"):
        run_here(folder, *task)
    assert (folder / "result.json").read_bytes() == before


@pytest.mark.parametrize("task", [EVALUATE, DISTILL])
def test_another_model_at_the_same_path_is_refused(tmp_path: Path, task: tuple[str, ...]) -> None:
    path, folder, model = write_prompts(tmp_path / "prompts.jsonl", A, C), tmp_path / "run", tmp_path / "model"
    save_model(model, seed=0)
    task = (*options(path), *task, "model=hf", f"model.path={model}", "model.dtype=float32")
    run_here(folder, *task)
    run_here(folder, *task)
    shutil.rmtree(model)
    save_model(model, seed=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".jsonl"}
    with pytest.raises(UserError, match="begun with another content of model"):
        run_here(folder, *task)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".jsonl"} == before


def test_another_adapter_at_the_same_path_is_refused(tmp_path: Path) -> None:
    path, folder, adapter = write_prompts(tmp_path / "prompts.jsonl", A, C), tmp_path / "run", tmp_path / "adapter"
    task = (*options(path), "drafter=layer_skip", "drafter/path=trained", f"drafter.path.adapter={adapter}")
    save_adapter(adapter, size=100)
    run_here(folder, *task)
    run_here(folder, *task)
    save_adapter(adapter, size=99)
    with pytest.raises(UserError, match=r"begun with another content of drafter\.path\.adapter"):
        run_here(folder, *task)
