"""Training texts: written and read back, imported, and split by conversation."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.data import tables
from selfdraft.data.distilled import Text, load_texts, split_by_prompt, write_dataset

LINES = [
    {"id": "a", "category": "qa", "turn": 0, "prompt_ids": [1, 2], "output_ids": [3], "text": "x", "rank": 0},
    {"id": "a", "category": "qa", "turn": 1, "prompt_ids": [1, 2, 3], "output_ids": [4, 5], "text": "y", "rank": 1},
]


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.fixture(autouse=True)
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read folders only in this process: reading them in another one first takes a second, and is tested once."""
    monkeypatch.setattr(tables, "_refuse_what_ends_the_process", lambda *_: None)


TRIAL = tables._refuse_what_ends_the_process


@pytest.mark.slow
def test_a_written_dataset_is_read_from_run_and_dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dataset(LINES, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_refuse_what_ends_the_process", TRIAL)
        load_texts(path)
    texts = [Text("a", [1, 2], [3]), Text("a", [1, 2, 3], [4, 5])]
    assert load_texts(tmp_path) == load_texts(path) == load_texts(str(path)) == texts
    columns = ["id", "category", "turn", "prompt_ids", "output_ids", "text"]
    assert datasets.load_from_disk(path).column_names == columns


def test_trajectories_are_stored_and_a_dataset_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_dataset(LINES, tmp_path)
    trajectories = [[[7], [3]], [[8, 9]]]
    write_dataset([{**a, "trajectories": b} for a, b in zip(LINES, trajectories, strict=True)], tmp_path)
    assert [text.trajectory for text in load_texts(tmp_path)] == trajectories
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_plain_text_counts_as_answer(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["ab", "", "c"], "body": ["x", "y", "z"]})
    rows.save_to_disk(tmp_path / "rows")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    expected = [Text("0", [], [97, 98]), Text("2", [], [99])]
    assert load_texts(tmp_path / "rows", encode) == load_texts(tmp_path / "splits", encode) == expected
    assert load_texts(tmp_path / "rows", encode, column="body")[1] == Text("1", [], [121])


def test_an_unreadable_dataset_gives_one_clear_line(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"body": ["x"]}).save_to_disk(tmp_path / "body")
    datasets.Dataset.from_dict({"text": [3]}).save_to_disk(tmp_path / "numbers")
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")
    datasets.DatasetDict({"dev": datasets.Dataset.from_dict({"text": ["x"]})}).save_to_disk(tmp_path / "dev")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "texts.jsonl").touch()
    for name, reason in [
        ("body", r"nor a column 'text'; it has body"),
        ("numbers", r"row 0: 'text' must be a text"),
        ("empty", r"could not be loaded \(.*\); give the folder of a run of task=distill_data"),
        ("dev", r"no split 'train'; it has dev"),
        ("begun", r"is not finished: its command with hydra\.run\.dir="),
        ("nowhere", r"Dataset '.*nowhere' could not be loaded"),
        ("x" * 5000, r"could not be loaded"),
    ]:
        with pytest.raises(UserError, match=reason) as refused:
            load_texts(tmp_path / name, encode)
        assert "\n" not in str(refused.value)
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(UserError, match=r"holds no texts: choose another one"):
        load_texts(tmp_path / "text", lambda text: [])
    with pytest.raises(UserError, match=r"there is no tokenizer"):
        load_texts(tmp_path / "text")


def test_invalid_ids_name_their_row(tmp_path: Path) -> None:
    """A dataset with our columns may come from anybody."""
    for number, (row, column) in enumerate(
        (
            ({"prompt_ids": ["a"], "output_ids": [1]}, "prompt_ids"),
            ({"prompt_ids": [1], "output_ids": [-1]}, "output_ids"),
            ({"prompt_ids": [1], "output_ids": [2**40]}, "output_ids"),
            ({"prompt_ids": [1], "output_ids": None}, "output_ids"),
            ({"prompt_ids": [1], "output_ids": [1], "trajectories": [[1, 2]]}, "trajectories"),
        )
    ):
        datasets.Dataset.from_list([{"id": "a", **row}]).save_to_disk(tmp_path / f"{number} rows")
        with naming(row), pytest.raises(UserError, match=rf"rows, row 0: `{column}` must be"):
            load_texts(tmp_path / f"{number} rows")


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    path = write_dataset(LINES, tmp_path)
    assert len(load_texts(path, vocabulary=6)) == 2
    with pytest.raises(UserError, match=r"row 1: `output_ids` must be a list of token ids, from 0 to 4: write the te"):
        load_texts(path, vocabulary=5)


@pytest.mark.parametrize("share", [0.001, 0.25, 0.999])
def test_all_turns_of_a_conversation_are_on_the_same_side(share: float) -> None:
    texts = [Text(str(i), [turn], [1]) for i in range(20) for turn in range(1 + i % 3)]
    train, held_out = split_by_prompt(texts, share, seed=1)
    names, others = {text.id for text in train}, {text.id for text in held_out}
    assert not names & others
    assert len(others) == {0.001: 1, 0.25: 5, 0.999: 19}[share]
    assert sorted(train + held_out, key=texts.index) == texts
    assert split_by_prompt(texts, share, seed=1) == (train, held_out)
    assert share != 0.25 or split_by_prompt(texts, share, seed=2) != (train, held_out)


def test_a_split_with_an_empty_side_is_refused() -> None:
    with pytest.raises(UserError, match=r"1 conversation\(s\) to learn from: at least 2"):
        split_by_prompt([Text("a", [1], [2]), Text("a", [3], [4])], 0.5, seed=0)
    with pytest.raises(UserError, match=r"a share of 1\.0 held out: must be between 0 and 1"):
        split_by_prompt([Text("a", [1], [2]), Text("b", [3], [4])], 1.0, seed=0)
