"""Datasets of the Hub and folders of tables."""

import bz2
import gzip
import json
import lzma
import struct
import zipfile
from pathlib import Path

import datasets
import pytest

from selfdraft.core.errors import UserError
from selfdraft.data import tables
from selfdraft.data.prompts import Prompt
from selfdraft.data.sources import load_hub

# The Hub, played by a local folder or a stub: no test touches the network


@pytest.fixture
def folder(tmp_path_factory, monkeypatch):
    """A dataset folder that `load_dataset` reads like one of the Hub's."""
    # Apart from the data: a cache inside the folder would be read as a part of the dataset the second time.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    data = tmp_path_factory.mktemp("data")
    datasets.disable_progress_bars()

    def _folder(*rows: dict) -> str:
        (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(data)

    yield _folder
    datasets.enable_progress_bars()


@pytest.fixture
def no_trial(monkeypatch):
    """Read folders only in this process: reading them in another one first takes a second, and is tested once."""
    monkeypatch.setattr(tables, "_refuse_what_ends_the_process", lambda *_: None)


@pytest.mark.slow
def test_hub_rows_become_prompts(folder):
    name = folder({"q": "One?", "category": "qa"}, {"q": "Two?", "category": None})
    assert load_hub(name, split="train", prompt_field="q") == [
        Prompt("train:0", "qa", ("One?",)),
        Prompt("train:1", "uncategorized", ("Two?",)),
    ]


def test_hub_columns_of_lists_are_turns(folder, no_trial):
    name = folder({"chat": ["One?", "Two?"], "kind": 1})
    assert load_hub(name, split="train", prompt_field="chat") == [Prompt("train:0", "uncategorized", ("One?", "Two?"))]


def test_hub_columns_are_found_by_their_form(folder, no_trial):
    talk = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "One?"}]
    name = folder({"messages": talk, "other": 1})
    assert load_hub(name, split="train") == [
        Prompt("train:0", "uncategorized", ("One?",), (("system", "Brief."),)),
    ]
    with pytest.raises(UserError, match=r"no column 'turns' or .* or 'instruction'; it has q\. Name the one"):
        load_hub(folder({"q": "One?"}), split="train")


def test_hub_errors_name_column_row_and_split(folder, no_trial):
    name = folder({"q": "One?"}, {"q": ""})
    with pytest.raises(UserError, match=r"has no column 'prompt'; it has q\."):
        load_hub(name, split="train", prompt_field="prompt")
    with pytest.raises(UserError, match=r"\(train, row 1\): `q` must be a string or a list of strings"):
        load_hub(name, split="train", prompt_field="q")
    with pytest.raises(UserError, match=r"could not be loaded \(.*dev.*\); check its name, subset, split"):
        load_hub(name, split="dev", prompt_field="q")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("test.jsonl", b"", r"could not be loaded \(it has an empty file\)"),
        ("test.jsonl", b"\n\n", r"could not be loaded \("),
        ("test.jsonl", '{"prompt": "Grüße"}\n'.encode("latin-1"), r"cannot be read \(it has a file that is not UTF-8"),
        ("test.csv", "prompt\nGrüße\n".encode("latin-1"), r"could not be loaded \(it has a file that is not UTF-8\)"),
        ("test.jsonl", b'{"prompt": "a\\ud800"}\n', r"could not be loaded \(JSON parse error: .*surrogate"),
        ("test.jsonl", b'{"prompt": ' + b"[" * 5000, r"test\.jsonl:1: malformed JSON \(nested too deeply"),
        ("test.jsonl.gz", b"\x1f\x8bx", r"could not be loaded \("),
        ("test.zip", b"PK\x03\x04", r"could not be loaded \("),
        ("test.tar", b"x", r"could not be loaded \("),
        ("README.md", b"---\nconfigs: [a\n---\n", r"could not be loaded \("),
        ("state.json", b"[]", r"could not be loaded \("),
        ("dataset_dict.json", b"{}", r"could not be loaded \("),
    ],
)
def test_a_damaged_folder_gives_one_clear_line(tmp_path, monkeypatch, capfd, no_trial, file, content, reason):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        load_hub(str(folder), split="test", prompt_field="prompt")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # neither bars nor log lines of another package


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_deep_line_of_a_folder_does_not_overflow_the_stack(tmp_path, opening, closing, packed):
    """pyarrow's parser ended the process with a segmentation fault."""
    deep = opening * 50_000 + "1" + closing * 50_000
    (tmp_path / "test.jsonl").write_bytes(packed(f'{{"prompt": "a"}}\n{{"prompt": {deep}}}\n'.encode()))
    with pytest.raises(UserError, match=r"test\.jsonl:2: malformed JSON \(nested too deeply"):
        load_hub(str(tmp_path), split="test", prompt_field="prompt")


def test_brackets_in_strings_are_not_nesting(folder, no_trial):
    """Side by side, or in strings."""
    name = folder({"q": "[{" * 2000, "other": [[1, '"]'] for _ in range(2000)]})
    assert load_hub(name, split="train", prompt_field="q")[0].turns == ("[{" * 2000,)


def test_a_saved_folder_is_read_without_decoding_other_columns(tmp_path, monkeypatch, no_trial):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_dict({"q": ["One?"]}).save_to_disk(tmp_path / "saved")
    assert [prompt.turns for prompt in load_hub(str(tmp_path / "saved"), split="test", prompt_field="q")] == [("One?",)]
    images = tmp_path / "images" / "test"
    images.mkdir(parents=True)
    (images / "a.png").write_bytes(b"no image")
    (images / "metadata.csv").write_text("file_name,q\na.png,Two?\n")
    loaded = load_hub(str(images.parent), split="test", prompt_field="q")
    assert [prompt.turns for prompt in loaded] == [("Two?",)]


@pytest.mark.slow
def test_a_folder_that_crashes_the_reader_gives_one_clear_line(tmp_path: Path) -> None:
    """pyarrow's parser recurses for every bracket, and archives are not checked before."""
    deep = '{"q": ' + "[" * 200_000 + "1" + "]" * 200_000 + "}\n"
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("train.jsonl", deep)
    with pytest.raises(UserError, match="reading it ended a process by signal"):
        load_hub(str(tmp_path), split="train", prompt_field="q")


@pytest.mark.slow
def test_no_file_of_the_working_directory_is_run(folder, tmp_path: Path, monkeypatch) -> None:
    """The process that reads a dataset folder first would import a datasets.py from there."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "datasets.py").write_text(f"open({str(place / 'was run')!r}, 'w')\n")
    monkeypatch.chdir(place)
    assert load_hub(folder({"prompt": "One?"}), split="train", prompt_field="prompt")
    assert not (place / "was run").exists()


@pytest.mark.slow
def test_a_saved_dataset_with_invalid_offsets_gives_one_clear_line(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"q": ["One?", "Two?"]}).save_to_disk(saved)
    file = next(saved.glob("*.arrow"))
    content = file.read_bytes()
    offsets = struct.pack("<3i", 0, 4, 8)
    assert content.count(offsets) == 1
    file.write_bytes(content.replace(offsets, struct.pack("<3i", 0, 4, 2**30)))
    with pytest.raises(UserError, match="its Arrow files are damaged"):
        load_hub(str(saved), split="train", prompt_field="q")


def test_hub_passes_subset_and_revision_on_and_refuses_an_empty_split(monkeypatch):
    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        return datasets.Dataset.from_dict({"q": []})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"Split 'test' of dataset 'a/b' is empty"):
        load_hub("a/b", split="test", subset="en", prompt_field="q", revision="v1")
    assert calls == [(("a/b", "en"), {"split": "test", "revision": "v1"})]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'a/b'\non the Hub"),
        datasets.exceptions.DatasetNotFoundError("Couldn't reach 'a/b'\non the Hub"),
    ],
)
def test_an_unreachable_hub_gives_one_line_with_the_cause(monkeypatch, error):
    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as caught:
        load_hub("a/b", split="test", prompt_field="q")
    assert str(caught.value).startswith("Dataset 'a/b' could not be loaded (Couldn't reach 'a/b' on the Hub); check")
