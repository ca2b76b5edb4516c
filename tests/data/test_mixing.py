"""Sources of task=distill_data mixed by weight, without held-out families."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from selfdraft.core.errors import UserError
from selfdraft.data.mixing import Source, mixed, without
from selfdraft.data.prompts import Prompt
from selfdraft.data.sources import load_bundled

DATASET = [Prompt(str(i), "qa" if i % 2 else "math_reasoning", (f"question {i}",)) for i in range(20)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "category": "code"}) + "\n" for i in range(10)))
    return path


def test_a_weight_follows_a_name_that_may_have_spaces() -> None:
    assert Source.parse("bundled") == Source("bundled", 1.0)
    assert Source.parse(" a file.jsonl 0.5") == Source("a file.jsonl", 0.5)
    assert Source.parse("a file.jsonl") == Source("a file.jsonl", 1.0)


@pytest.mark.parametrize("entry", ["bundled 0", "bundled -1", "bundled inf", ""])
def test_weights_are_positive(entry: str) -> None:
    with pytest.raises(UserError, match=r"distill\.sources"):
        Source.parse(entry)


def test_shares_follow_the_weights(file: Path) -> None:
    found = mixed(["dataset 3", f"{file} 1", "invented 2"], DATASET, total=12, held_out=(), seed=0)
    assert list(found.counts.values()) == [6, 2, 4]
    counts = Counter(p.category for p in found.prompts)
    assert (counts["code"], counts["invented"]) == (2, 4)
    assert len({p.id for p in found.prompts}) == 12
    again = mixed(["dataset 3", f"{file} 1", "invented 2"], DATASET, total=12, held_out=(), seed=0)
    assert again == found
    assert mixed(["dataset 3", f"{file} 1"], DATASET, total=8, held_out=(), seed=1) != found


def test_without_a_total_the_scarcest_source_gives_everything(file: Path) -> None:
    found = mixed(["dataset 1", f"{file} 1"], DATASET, total=None, held_out=(), seed=0)
    assert list(found.counts.values()) == [10, 10]


def test_plain_texts_are_not_prompts(file: Path) -> None:
    found = mixed([f"text:{file}"], [], total=None, held_out=(), seed=0)
    assert found.prompts == []
    assert sorted(found.texts.values()) == sorted(f"p{i}" for i in range(10))


def test_held_out_families_are_left_out_of_every_source() -> None:
    found = mixed(["dataset", "bundled"], DATASET, total=None, held_out=["qa", "mt_bench"], seed=0)
    assert not {"qa", "mt_bench"} & {p.family for p in found.prompts}
    assert {p.family for p in found.prompts if p.id.startswith("bundled/")}
    with pytest.raises(UserError, match=r"family or category qq; present are .*math_reasoning, qa$"):
        mixed(["dataset"], DATASET, total=None, held_out=["qq"], seed=0)
    bundled = load_bundled()
    assert len(without(bundled, ["coding"])) == sum(p.category != "coding" for p in bundled) < len(bundled)


def test_files_of_one_name_keep_their_ids_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text('{"prompt": "p"}\n')
    found = mixed([str(tmp_path / f / "x.jsonl") for f in ("a", "b")], [], total=None, held_out=(), seed=0)
    assert [prompt.id for prompt in found.prompts] == ["x 1/1", "x 2/1"]


def test_mistakes_are_one_clear_line(file: Path) -> None:
    with pytest.raises(UserError, match="twice"):
        mixed(["dataset", "dataset 2"], DATASET, total=None, held_out=(), seed=0)
    with pytest.raises(UserError, match="without end"):
        mixed(["invented"], DATASET, total=None, held_out=(), seed=0)
    with pytest.raises(UserError, match="has no prompts besides"):
        mixed([str(file)], DATASET, total=None, held_out=["code"], seed=0)
