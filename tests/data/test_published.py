"""Named datasets are read in the layouts in which they are published; no test touches the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from selfdraft.app.options.schema_dataset import (
    AlpacaConfig,
    DatasetConfig,
    Gsm8kConfig,
    Math500Config,
    MbppConfig,
    MtBenchConfig,
    SpecBenchConfig,
    SpeedBenchConfig,
)
from selfdraft.core.errors import UserError
from selfdraft.core.scoring import EXPRESSION, NUMBER, TESTS, Reference
from selfdraft.data.prompts import Prompt
from selfdraft.data.published import SPEED_PLACEHOLDER

GSM8K = {"question": "How many?", "answer": "She has <<3+4=7>>7.\n#### 1,007"}
MATH = {"problem": "Half?", "solution": r"\boxed{\frac12}", "answer": r"\frac12", "unique_id": "test/a/1.json"}
MBPP = {"text": "Add.", "code": "", "task_id": 11, "test_setup_code": "", "test_list": ["assert add(1) == 2"]}
SANITIZED = {"prompt": "Sub.", "task_id": 12, "test_imports": ["import math"], "test_list": ["assert sub(1) == 0"]}
QUESTION = {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"], "reference": []}
SPEED = {"question_id": "ab", "category": "math", "sub_category": None, "turns": ["One?"], "multiturn": False}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write records as lines of a file of this name, or as an array if it ends in .json; return the copy's folder."""

    def _write(name: str, *records: object) -> Path:
        file = tmp_path / "copy" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        file.write_text(json.dumps(records) if file.suffix == ".json" else lines)
        return tmp_path / "copy"

    return _write


def test_gsm8k_asks_the_question_and_knows_the_number(write: Callable[..., Path]) -> None:
    folder = write("grade_school_math/data/test.jsonl", GSM8K)
    write("grade_school_math/data/train.jsonl", GSM8K, GSM8K)
    prompt = Prompt("test:1", "gsm8k", ("How many?",), reference=Reference(NUMBER, "1,007"))
    assert Gsm8kConfig(path=str(folder)).load() == [prompt]
    assert [one.id for one in Gsm8kConfig(path=str(folder), split="train").load()] == ["train:1", "train:2"]
    assert Gsm8kConfig(path=str(folder / "grade_school_math/data/test.jsonl")).load() == [prompt]


def test_math500_asks_for_a_boxed_answer(write: Callable[..., Path]) -> None:
    older = {"problem": "Half?", "level": "Level 1", "type": "Algebra", "solution": r"It is \boxed{0.5}."}
    (one, other) = Math500Config(path=str(write("test.jsonl", MATH, older))).load()
    assert one.id == "test/a/1.json" and one.turns == ("Half?\n\nPut your final answer within \\boxed{}.",)
    assert (one.reference, other.reference) == (Reference(EXPRESSION, r"\frac12"), Reference(EXPRESSION, "0.5"))


def test_mbpp_shows_the_tests_and_takes_the_tasks_of_a_split(write: Callable[..., Path]) -> None:
    folder = write("mbpp.jsonl", MBPP, {**MBPP, "task_id": 601}, {**MBPP, "task_id": 13, "test_setup_code": "x = 1"})
    write("sanitized-mbpp.json", SANITIZED)
    one, other = MbppConfig(path=str(folder)).load()
    assert (one.id, other.id) == ("MBPP/11", "MBPP/13")
    assert one.turns[0].startswith("Add. Answer with") and "assert add(1) == 2\n```" in one.turns[0]
    assert one.reference == Reference(TESTS, "assert add(1) == 2")
    assert other.reference == Reference(TESTS, "assert add(1) == 2", preamble="x = 1")
    (checked,) = MbppConfig(path=str(folder), subset="sanitized").load()
    assert checked.reference == Reference(TESTS, "assert sub(1) == 0", preamble="import math")
    with pytest.raises(UserError, match="dataset=mbpp: the file holds no prompt of this dataset"):
        MbppConfig(path=str(folder), split="prompt").load()


def test_mt_bench_is_read_as_on_the_hub_and_as_lmsys_has_it(write: Callable[..., Path]) -> None:
    (one,) = MtBenchConfig(path=str(write("question.jsonl", QUESTION))).load()
    assert one == Prompt("81", "writing", ("One?", "Two?")) and one.family == "mt_bench"
    hub = {"prompt": ["One?", "Two?"], "prompt_id": 7, "category": "writing", "reference": []}
    assert MtBenchConfig(path=str(write("data/train-00000-of-00001.jsonl", hub))).load() == [
        Prompt("7", "writing", ("One?", "Two?"))
    ]


def test_alpaca_has_the_input_below_the_instruction(write: Callable[..., Path]) -> None:
    records = [{"instruction": "Add.", "input": "1, 2", "output": "3"}, {"instruction": "Sing.", "input": ""}]
    assert AlpacaConfig(path=str(write("alpaca_data.json", *records))).load() == [
        Prompt("1", "alpaca", ("Add.\n\n1, 2",)),
        Prompt("2", "alpaca", ("Sing.",)),
    ]


def test_spec_bench_is_read_from_its_file_or_folder(write: Callable[..., Path]) -> None:
    folder = write("data/spec_bench/question.jsonl", QUESTION, {**QUESTION, "question_id": 321, "category": "qa"})
    loaded = SpecBenchConfig(path=str(folder)).load()
    assert [prompt.family for prompt in loaded] == ["mt_bench", "qa"]
    assert SpecBenchConfig(path=str(folder / "data/spec_bench/question.jsonl")).load() == loaded


def test_speed_bench_is_read_as_published_and_as_prepared(write: Callable[..., Path]) -> None:
    folder = write("qualitative/test-00000-of-00001.jsonl", SPEED)
    write("throughput_1k/test-00000-of-00001.jsonl", {**SPEED, "category": "mixed"})
    (one,) = SpeedBenchConfig(path=str(folder)).load()
    assert (one.id, one.turns, one.family) == ("ab", ("One?",), "math")
    assert [p.family for p in SpeedBenchConfig(path=str(folder), subset="throughput_1k").load()] == ["mixed"]
    prepared = {k: v for k, v in SPEED.items() if k != "turns"}
    prepared["messages"] = [{"role": "user", "content": "One?"}, {"role": "user", "content": "Two?"}]
    (one,) = SpeedBenchConfig(path=str(write("prepared.jsonl", prepared) / "prepared.jsonl")).load()
    assert one.turns == ("One?", "Two?")


def test_placeholders_of_speed_bench_are_no_prompts(write: Callable[..., Path]) -> None:
    folder = write("qualitative.jsonl", SPEED, {**SPEED, "question_id": "cd", "turns": [SPEED_PLACEHOLDER + " …"]})
    with pytest.raises(UserError, match="1 of 2 prompts are placeholders, first cd: prepare the dataset"):
        SpeedBenchConfig(path=str(folder)).load()


@pytest.mark.slow
def test_a_clone_with_parquet_files_and_a_saved_dataset_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "clone" / "main" / "test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    table = datasets.Dataset.from_list([GSM8K])
    table.to_parquet(file)
    loaded = Gsm8kConfig(path=str(tmp_path / "clone")).load()
    assert [prompt.turns for prompt in loaded] == [("How many?",)]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table.save_to_disk(tmp_path / "saved")
    assert Gsm8kConfig(path=str(tmp_path / "saved")).load() == loaded


def test_without_a_copy_the_hub_is_asked_as_the_dataset_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, **options: Any) -> datasets.Dataset:
        asked.append((name, subset, options.pop("split")))
        assert options == {"revision": None}  # and never trust_remote_code
        rows = {"gsm8k": GSM8K, "MATH-500": MATH, "mbpp": {**MBPP, **SANITIZED}, "SPEED-Bench": SPEED}
        rows |= {"mt_bench_prompts": QUESTION, "alpaca": {"instruction": "Sing."}}
        return datasets.Dataset.from_list([rows[name.partition("/")[2]]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for config in (Gsm8kConfig(), Math500Config(), MbppConfig(), MtBenchConfig(), AlpacaConfig(), SpeedBenchConfig()):
        assert len(config.load()) == 1
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("HuggingFaceH4/MATH-500", None, "test"),
        ("google-research-datasets/mbpp", "full", "test"),
        ("HuggingFaceH4/mt_bench_prompts", None, "train"),
        ("tatsu-lab/alpaca", None, "train"),
        ("nvidia/SPEED-Bench", "qualitative", "test"),
    ]


def test_an_unreachable_hub_says_how_to_give_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"'openai/gsm8k' could not be loaded \(no network\); give a copy on this mach"):
        Gsm8kConfig().load()


@pytest.mark.parametrize(
    ("config", "record", "reason"),
    [
        (Gsm8kConfig, {"question": "a"}, "`answer` must be a string that is not empty, as this dataset"),
        (Gsm8kConfig, {"question": "a", "answer": "none"}, "`answer` must end with #### and a number"),
        (Gsm8kConfig, {**GSM8K, "question": ["a"]}, "`question` must be a string"),
        (Math500Config, {"problem": "a", "solution": "b"}, "there is no `answer`, and `solution` has no"),
        (MbppConfig, {**MBPP, "task_id": "11"}, "`task_id` must be a whole number"),
        (MbppConfig, {**MBPP, "test_list": "a"}, "`test_list` must be a list of strings"),
        (MbppConfig, {**MBPP, "test_list": []}, "`test_list` is empty"),
        (MtBenchConfig, {**QUESTION, "turns": [1]}, "`turns` must be a list of strings"),
        (MtBenchConfig, {**QUESTION, "turns": []}, "`turns` must be a list of strings"),
        (SpecBenchConfig, {"turns": ["a"]}, "`category` must be a string"),
        (AlpacaConfig, {"instruction": " "}, "`instruction` must be a string that is not empty"),
        (SpeedBenchConfig, {"category": "math"}, "no prompt: none of the keys turns, prompt, messages"),
    ],
)
def test_another_layout_gives_one_line_that_names_the_place(
    write: Callable[..., Path], config: type[DatasetConfig], record: dict, reason: str
) -> None:
    file = write("test.jsonl", record) / "test.jsonl"
    with pytest.raises(UserError) as caught:
        config(path=str(file)).load()
    assert str(caught.value).startswith(f"{file}:1: {reason}") and "\n" not in str(caught.value)


def test_a_folder_without_the_file_names_what_it_looks_for(write: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match=r"no file of this dataset \(train\*\.json, .*question\.jsonl\); its files are: o"
    ):
        MtBenchConfig(path=str(write("other.jsonl", QUESTION))).load()
    with pytest.raises(UserError, match=r"There is no file /none"):
        Gsm8kConfig(path="/none").load()
