"""The same checks on a GPU, with its own kernels, rounding and clocks. Skipped without a GPU.

Everything else is tested on a CPU and not repeated here: only what could differ.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from command_line import SMOKE, read_lines, read_result, run_here, said_by
from lossless import EVERY_CONFIG, EVERY_NAME, cannot
from made import made
from random_adapters import ADAPTED
from selfdraft.app.terminal.command_line import with_artifact
from selfdraft.core.errors import UserError
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.decoding import Drafting
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.measuring.profiling import measure_costs
from selfdraft.modules.recipes import RECIPES
from subjects import PROMPTS, stock_output, subject

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

ON_GPU = (*SMOKE, "hardware=gpu")
FAMILIES = ("llama", "gemma3_text", "gpt_neox")
PAIRS = [
    pytest.param(config, family, id=f"{name}-{family}")
    for config, name in zip(EVERY_CONFIG, EVERY_NAME, strict=True)
    for family in FAMILIES
    if not cannot(config, family)
]


@pytest.mark.parametrize(("config", "family"), PAIRS)
def test_ids_of_a_ragged_batch_equal_those_of_generate(family: str, config: DrafterConfig) -> None:
    it = subject(family, 2, True, "cuda")
    assert [g.output for g in it.decode(made(it.target, config), 3)] == it.expected


@pytest.mark.parametrize("case", ADAPTED)
def test_ids_with_an_adapter_equal_those_of_generate(case: str, tmp_path: Path) -> None:
    it = subject("llama", 2, True, "cuda")
    config = ADAPTED[case].written(it.target, tmp_path)
    assert [g.output for g in it.decode(made(it.target, config), 3)] == it.expected


@pytest.mark.parametrize("hidden", [32, 64])  # heads of 8, too small for compiled kernels, and of 16
@pytest.mark.parametrize("attention", ["eager", "flex"])
def test_other_attention_implementations_give_the_same_text(attention: str, hidden: int) -> None:
    model = tiny_model(hidden=hidden).to("cuda")
    target = Target(model, attention=attention)
    config = next(c for c in EVERY_CONFIG if c.name == "lookahead")
    decoder = Decoder(target, made(target, config), Stopping(frozenset(), 12))
    assert [decoder.decode(prompt).output for prompt in PROMPTS] == [stock_output(model, p, 12) for p in PROMPTS]


@pytest.mark.parametrize("name", ["prompt_lookup", "suffix", "jacobi", "layer_skip", "swift"])
def test_a_sampled_text_does_not_depend_on_deterministic_drafts(name: str) -> None:
    """By one number for each position; drafts that are drawn have numbers of their own, so they only must run."""
    it = subject("llama", 2, True, "cuda")
    rule, stopping = NextToken(sample=True, temperature=1.5, top_k=20, top_p=0.95), Stopping(frozenset(), 24)
    texts = []
    for drafter in ("none", name):
        decoder = Decoder(it.target, made(it.target, configured(drafter)), stopping, rule=rule)
        texts.append([decoder.decode(prompt, seed=7).output for prompt in PROMPTS])
    assert [len(text) for text in texts[1]] == [24] * len(PROMPTS)
    if name in ("prompt_lookup", "suffix"):
        assert texts[0] == texts[1]


def test_generate_accepts_a_drafting() -> None:
    model = tiny_model().to("cuda")
    ids = torch.tensor([PROMPTS[1]], device="cuda")
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    assert model.generate(ids, custom_generate=Drafting("suffix"), **options).tolist() == (
        model.generate(ids, **options).tolist()
    )


def test_ties_are_decided_by_a_float32_copy_on_the_gpu() -> None:
    target = Target(tiny_model(dtype=torch.bfloat16).to("cuda"))
    decoder = Decoder(target, made(target, DrafterConfig()), Stopping(frozenset(), 16))
    alone = decoder.decode(PROMPTS[1]).output
    certifier = Certifier(target)
    assert certifier.certify(PROMPTS[1], alone, alone).verdict == "exact"
    assert certifier.certify(PROMPTS[1], [*alone[:-1], (alone[-1] + 1) % 96], alone).verdict == "mismatch"


@torch.inference_mode()
def test_measured_seconds_are_those_of_the_device(tmp_path: Path) -> None:
    """Large products take long on the device but not on the host; the device's time must be measured."""
    model = tiny_model(layers=2, hidden=4096, heads=32, kv_heads=8, intermediate_size=65536, dtype=torch.bfloat16)
    target = Target(model.to("cuda"))
    costs = measure_costs(target, sizes=(1, 64), context=16)
    target.allocate(1, 64)
    target.prefill(0, [5, 17, 3])
    trees, taken = [TokenTree.chain(list(range(63)))], []
    for _ in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        target.forward([0], [9], trees)[0].argmax(-1)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    assert 0.5 * min(taken) < costs(64) < 2.0 * max(taken)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_evaluation(dtype: str, tmp_path: Path) -> None:
    run_here(tmp_path, *ON_GPU, f"model.dtype={dtype}", "drafter=pool", "decoding.guard=true")
    result, environment = read_result(tmp_path), json.loads((tmp_path / "environment.json").read_text())
    assert environment["gpu"]["name"] == torch.cuda.get_device_name()
    assert {line["lossless"]["verdict"] for line in read_lines(tmp_path)} <= {"exact", "tie"}
    assert dtype == "bfloat16" or {line["lossless"]["verdict"] for line in read_lines(tmp_path)} == {"exact"}
    assert result["peak_memory_mb"] > 0


def test_shape_invariance_holds_or_is_refused_by_name(tmp_path: Path) -> None:
    """Shape invariance is checked for these kernels too; if it does not hold, runs with it are refused."""
    try:
        run_here(tmp_path, *ON_GPU, "model.dtype=bfloat16", "decoding.shape_invariant=true", "drafter=prompt_lookup")
    except UserError as refused:
        assert "shape_invariant" in str(refused)
    else:
        assert {line["lossless"]["verdict"] for line in read_lines(tmp_path)} == {"exact"}


def test_a_profile(tmp_path: Path) -> None:
    said_by(tmp_path, *ON_GPU, "task=profile", "task.rounds=1")
    written = json.loads((tmp_path / "profile.json").read_text())
    assert written["device"] == torch.cuda.get_device_name()


def test_a_calibration(tmp_path: Path) -> None:
    run_here(
        tmp_path, *ON_GPU, "task=calibrate", "drafter=layer_skip", "calibrate.method=evolution", "calibrate.trials=4"
    )
    assert (tmp_path / "drafter.yaml").is_file()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished task=distill_data, with trajectories."""
    folder = tmp_path_factory.mktemp("texts")
    distill = ("task=distill_data", "drafter=none", "decoding.batch_size=4", "distill.trajectories=8")
    run_here(folder, *ON_GPU, *distill, "dataset.per_category=2", "decoding.max_new_tokens=32")
    return folder


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_and_its_adapter_drafts(recipe: str, precision: str, texts: Path, tmp_path: Path) -> None:
    short = ("finetune.length=160", "finetune.batch_size=2", "finetune.rank=4", "finetune.validation=0.3")
    short += ("finetune.steps=10", "finetune.validate_every=5", f"finetune.precision={precision}")
    if recipe == "exit_adapter":
        short += ("finetune.exit_layer=2", "finetune.vocabulary=64")
    run_here(tmp_path / "made", *ON_GPU, "task=finetune", f"finetune={recipe}", f"finetune.data=[{texts}]", *short)
    overrides = [*ON_GPU, f"drafter.from={tmp_path / 'made'}"]
    run_here(tmp_path / "used", *with_artifact(overrides))
    assert {line["lossless"]["verdict"] for line in read_lines(tmp_path / "used")} == {"exact"}
