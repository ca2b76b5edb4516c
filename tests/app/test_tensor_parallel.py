"""Two processes have a part of every matrix each, and write what one process with whole matrices does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from command_line import SMOKE, read_lines, read_result, run, run_here, write_prompts
from selfdraft.app.options.schemas import HardwareConfig
from selfdraft.core.errors import UserError
from selfdraft.models.loading.loading import outline_pretrained
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer
from selfdraft.models.measuring.memory import needed

PROMPTS = [{"id": f"p{i}", "category": "qa", "prompt": f"What is {i} and {i}?"} for i in range(2)]
TWO = ("hardware=cpu_ddp", "hardware.tensor_parallel=true")
CONTENDERS = (
    "[none, 'jacobi costs=flat', 'pool costs=flat', layer_skip, swift, early_exit, clasp, dynamic_exit, sparse_kv, "
    "lookahead, 'cascade costs=flat', transformers_greedy]"
)
BY_CLOCK = ("early_exit", "dynamic_exit", "swift", "clasp")  # how much these draft depends on what forwards take


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, two of whose heads share keys."""
    folder, tokenizer = tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_tokenizer()
    tiny_model("llama", seed=0, vocab_size=len(tokenizer), max_positions=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def overrides(checkpoint: Path, prompts: Path, out: Path) -> list[str]:
    model = ("model=hf", f"model.path={checkpoint}", "model.dtype=float32")
    data = ("dataset=jsonl", f"dataset.path={prompts}", "dataset.per_category=null", "decoding.max_new_tokens=12")
    return [*SMOKE, *model, *data, f"hydra.run.dir={out}"]


@pytest.mark.slow
def test_every_drafter_writes_what_it_does_in_one_process(checkpoint: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", *PROMPTS)
    task = ("task=compare", f"task.contenders={CONTENDERS}")
    done = run(*overrides(checkpoint, prompts, tmp_path / "two"), *task, *TWO)
    assert done.returncode == 0, done.stdout + done.stderr
    run_here(tmp_path / "one", *overrides(checkpoint, prompts, tmp_path / "one")[:-1], "model.engine=eager", *task)
    two, one = ({line["id"]: line for line in read_lines(tmp_path / name)} for name in ("two", "one"))
    assert {line["rank"] for line in two.values()} == {0}
    assert set(two) == {prompt["id"] for prompt in PROMPTS}
    for name, line in one.items():
        assert two[name]["output_ids"] == line["output_ids"]
    results = read_result(tmp_path / "two"), read_result(tmp_path / "one")
    contenders, expected = (each["contenders"] for each in results)
    assert contenders.keys() == expected.keys()
    for name, ours in contenders.items():
        assert ours["lossless"]["mismatch"] == 0
        if name not in BY_CLOCK:
            assert ours["tokens_per_forward"] == expected[name]["tokens_per_forward"], name


@pytest.mark.slow
def test_a_drafter_with_matrices_of_its_own_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", *PROMPTS)
    done = run(*overrides(checkpoint, prompts, tmp_path / "two"), "drafter=low_bit", *TWO)
    assert "drafter=low_bit has matrices of its own" in done.stderr
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.slow
def test_heads_that_cannot_be_dealt_evenly_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", *PROMPTS)
    done = run(*overrides(checkpoint, prompts, tmp_path / "three"), *TWO, "hardware.devices=3")
    assert "heads of a layer cannot be dealt evenly to 3 processes" in done.stderr
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UserError, match=r"shares matrices among processes, and hardware\.devices=1 is one"):
        HardwareConfig(tensor_parallel=True)
    with pytest.raises(UserError, match="leave tree_parallel or tensor_parallel out"):
        HardwareConfig("cpu_ddp", devices=2, strategy="ddp", tree_parallel=True, tensor_parallel=True)


def test_the_memory_of_a_large_model_is_known_from_its_shapes(tmp_path: Path) -> None:
    """Llama 2 70B in 8 parts: 138 GB of bfloat16 weights, of which a process has an eighth."""
    shape = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    outline = outline_pretrained(str(tmp_path))
    given = {"rows": 1, "packed": False, "new_tokens": 128, "certify": False}
    whole, part = (
        needed(outline, torch.bfloat16, torch.device("cpu"), **given, parts=parts)  # type: ignore[arg-type]
        for parts in (1, 8)
    )
    assert 137e9 < whole.weights < 139e9
    assert part.weights == -(-whole.weights // 8)
    assert part.cache == -(-whole.cache // 8)
