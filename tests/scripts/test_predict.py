"""scripts/predict.py: recorded steps priced at stub costs worked out by hand, and the cost files that are shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from command_line import composed
from naming import naming
from script_module import script_module
from selfdraft.app.runs.build import measured_config
from selfdraft.core.costmodel import CostModel
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.trained.adapter import Adapter

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "experiments" / "costs").glob("*.json"))


def script(name: str) -> ModuleType:
    return script_module(name)


def stub_costs() -> CostModel:
    """Ten layers; a token 11 s (base 1, each sublayer 0.5), one more in a forward 1 s in all."""
    flat = CostCurve((1, 2), (0.5, 0.5))
    return CostModel(
        device="stub",
        model="stub",
        dtype="float32",
        source="made up",
        layers=10,
        forward=CostCurve((1, 2), (11.0, 12.0)),
        base=CostCurve((1, 2), (1.0, 1.0)),
        layer=CostCurve((1, 2), (0.0, 0.0)),
        attention=flat,
        mlp=flat,
        head=flat,
        confidence_s=0.25,
    )


def line(steps: list[list], new_tokens: int, target_forwards: int | None = None) -> dict:
    forwards = len(steps) if target_forwards is None else target_forwards
    return {"steps": steps, "new_tokens": new_tokens, "target_forwards": forwards}


MEASURED = {
    "id": "a",
    "turn": 0,
    "category": "writing",
    "family": "mt_bench",
    "text": "answer",
    "prompt_ids": [1, 2],
    "output_ids": [1, 2, 3, 4, 5, 6],
    "prefill_s": 0.5,
    "decode_s": 1.0,
    "baseline_decode_s": 2.0,
    "baseline_new_tokens": 6,
    "latency_s": 1.5,
    "baseline_latency_s": 2.5,
    "lossless": {"verdict": "exact", "first_divergence": None, "margin": None, "control": None},
    "acceptance_by_depth": [{"offered": 5, "accepted": 4}],
    "phases_s": {"prefill": 0.5, "draft": 0.1, "verify": 0.8, "commit": 0.06, "other": 0.04},
    "peak_memory_mb": 100.0,
    "references": {},
}
STEPS = [[[7, 8], None, [0, 1], 9, "x"], [[], None, [], 5, "x"], [[1, 2, 3], [-1, -1, 1], [1], 4, "x"]]


def seconds_a_token(drafter: DrafterConfig, **counts: int) -> float:
    return script("predict").predict([line(STEPS, 6, **counts)], drafter, 5, 100, stub_costs())[0]


def test_lookups_cost_only_their_verification() -> None:
    assert seconds_a_token(configured("prompt_lookup")) == pytest.approx((13 + 11 + 14) / 6)


def test_every_sparse_token_costs_its_share_of_the_model() -> None:
    # One of five attentions and two of five MLPs left out; of ten layers that is 2 and 4: 11 - 1 - 2 = 8 s a token.
    config = configured("layer_skip", skip_attention=[1], skip_mlp=[2, 3])
    drafted = 2 + 0 + 2  # the third draft is two levels deep
    assert seconds_a_token(config) == pytest.approx((38 + drafted * 8) / 6)
    assert seconds_a_token(replace(config, min_confidence=0.5)) == pytest.approx((38 + drafted * 8.25) / 6)


def test_reused_leading_layers_are_paid_once() -> None:
    # Two of five layers, of ten four: a token drafts in 1 + 4 = 5 s. What the stub's layers cost hangs on no number of
    # tokens, so that one token that has to be run through them costs what all do.
    exit_ = configured("early_exit", exit_layer=2)
    assert exit_.reuse
    assert seconds_a_token(replace(exit_, reuse=False)) == pytest.approx((38 + 4 * 5) / 6)
    assert seconds_a_token(exit_) == pytest.approx((38 + 4 * 5) / 6)
    costs = replace(stub_costs(), attention=CostCurve((1, 2), (0.5, 1.0)), mlp=CostCurve((1, 2), (0.5, 1.0)))
    token = script("predict").predict([line(STEPS, 6)], exit_, 5, 100, costs)[0]
    # Now 4 s for each token: of three verified two are spared, and of four (two levels deep) two.
    assert token == pytest.approx((38 + 4 * 5 - 8 - 8) / 6)


def test_skip_set_and_vocabulary_come_from_the_adapter(tmp_path: Path) -> None:
    settings = {"scale": 1.0, "skip_attention": [1], "skip_mlp": [2, 3]}
    Adapter("test", settings, {"vocabulary": torch.arange(20)}).write(tmp_path)
    folder = str(tmp_path)
    assert seconds_a_token(configured("layer_skip", adapter=folder)) == pytest.approx((38 + 4 * (8 - 0.8 * 0.5)) / 6)
    assert seconds_a_token(configured("pseudo_tokens", adapter=folder)) == pytest.approx(38 / 6)
    with pytest.raises(UserError, match="pool without an adapter"):
        seconds_a_token(configured("pool", adapter=folder))


def test_refining_forwards_cost_whole_blocks() -> None:
    assert seconds_a_token(configured("jacobi", window=4), target_forwards=5) == pytest.approx((38 + 2 * 15) / 6)


def test_refining_forwards_of_an_adapter_are_paid_for_too(tmp_path: Path) -> None:
    Adapter("test", {"scale": 1.0, "skip_attention": [], "skip_mlp": []}, {}).write(tmp_path / "whole")
    Adapter("test", {"scale": 1.0, "skip_attention": [1], "skip_mlp": []}, {}).write(tmp_path / "sparse")
    config = configured("jacobi", window=4, refine_steps=2, adapter=str(tmp_path / "whole"))
    assert seconds_a_token(config) == pytest.approx((38 + 2 * 2 * 15) / 6)  # two steps drafted something
    with pytest.raises(UserError, match="jacobi with one that skips nothing"):
        seconds_a_token(configured("jacobi", adapter=str(tmp_path / "sparse")))


def test_drafters_without_a_price_are_refused() -> None:
    for name in ("cascade", "swift", "sparse_jacobi"):
        with pytest.raises(UserError, match=f"drafter={name}: this script prices"):
            seconds_a_token(configured(name))


def test_drafters_of_old_and_new_result_files_are_read() -> None:
    for plain, config in [
        (  # of runs before drafters had a path: every option that the YAML had
            {
                "name": "layer_skip",
                "sparsity": 0.3,
                "skip_attention": None,
                "skip_mlp": None,
                "reuse": False,
                "bonus": "auto",
                "draft_length": 3,
                "length": "threshold",
                "min_confidence": 0.0,
                "siblings": False,
                "draft_vocabulary": None,
                "warm": False,
                "adapter": None,
            },
            configured("layer_skip", sparsity=0.3, draft_length=3),
        ),
        (
            {"name": "early_exit", "exit_layer": None, "reuse": True, "bonus": "keep", "adapter": "somewhere"},
            configured("early_exit", bonus="keep", adapter="somewhere"),
        ),
        (
            {"name": "jacobi", "window": 7, "mode": "literal", "adapter": "somewhere"},
            configured("jacobi", window=7, mode="literal", adapter="somewhere"),
        ),
        ({"name": "pool", "edges": 2, "adapter": None}, configured("pool", edges=2)),
        ({"name": "pseudo_tokens", "adapter": "somewhere"}, configured("pseudo_tokens", adapter="somewhere")),
        # of runs since then:
        (
            {"name": "chain", "reuse": True, "path": {"name": "early_exit", "exit_layer": 2}},
            configured("early_exit", exit_layer=2),
        ),
        (
            {"name": "chain", "draft_length": 2, "path": {"name": "trained", "adapter": "somewhere"}},
            configured("trained", draft_length=2, adapter="somewhere"),
        ),
        ({"name": "jacobi", "window": 7, "path": {"name": "full"}}, configured("jacobi", window=7)),
        ({"name": "suffix", "branches": 1}, configured("suffix", branches=1)),
    ]:
        with naming(plain, config):
            assert script("predict").drafter_of(plain) == config


def test_the_files_of_a_run_are_read() -> None:
    for overrides, config in (
        (["drafter=early_exit", "drafter.path.exit_layer=2"], configured("early_exit", exit_layer=2)),
        (["drafter=jacobi", "drafter/path=swift"], configured("jacobi", path="swift")),
        (["drafter=suffix"], configured("suffix")),
    ):
        assert script("predict").drafter_of(measured_config(composed(*overrides))["drafter"]) == config


def test_the_command_prints_one_row_per_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps(MEASURED | line(STEPS, 6)) + "\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"drafter": {"name": "prompt_lookup"}}))
    result = {"drafter": "prompt_lookup", "model": "m", "dtype": "float32", "speedup_total": 1.5}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "stub.json").write_text(json.dumps(stub_costs().to_dict()))
    files = [str(tmp_path / "stub.json"), *map(str, SHIPPED)]
    assert script("predict").main([str(tmp_path), "--hardware", *files]) == 0
    said = capsys.readouterr().out
    assert "| stub | stub | 11000.00 | 6333.33 | 1.74 |" in said
    assert said.count("(roofline)") == 4
    assert "measured there: 1.50" in said


def test_malformed_files_give_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in [
        ("config.yaml", "drafter: {name: layer_skip, sparsity: '${oc.env:HOME}'}"),
        ("config.yaml", "drafter: {name: &x layer_skip, copy: *x}"),
        ("config.yaml", "drafter: {name: nobody}"),
        ("config.yaml", "drafter: {name: [chain]}"),
        ("config.yaml", "drafter: {name: chain, path: layer_skip}"),
        ("config.yaml", "drafter: {name: chain, path: {name: nowhere}}"),
        ("config.yaml", "drafter: {name: chain, path: {name: [full]}}"),
        ("config.yaml", "drafter: {name: chain, path: {name: layer_skip, draft_length: 2}, draft_length: 3}"),
        ("config.yaml", "drafter: {name: chain, path: {name: layer_skip, exit_layer: 2}}"),
        ("config.yaml", "drafter: {name: suffix, path: {name: full}}"),
        ("config.yaml", "drafter: {name: trained}"),
        ("config.yaml", "[1"),
        ("config.yaml", "3"),
        ("prompts.jsonl", json.dumps(MEASURED | {"new_tokens": 6, "target_forwards": 1}) + "\n"),
        ("prompts.jsonl", json.dumps(MEASURED | line([[[1, 2], [0, 5]]], 6)) + "\n"),
        ("prompts.jsonl", json.dumps(MEASURED | line([[3]], 6)) + "\n"),
        ("result.json", "[" * 100_000),
        ("result.json", "{}"),
        ("result.json", '{"drafter": "n", "model": "m", "dtype": "d", "speedup_total": "fast"}'),
        ("stub.json", "[" * 100_000),
        ("stub.json", json.dumps(stub_costs().to_dict() | {"base": {"sizes": ["1", "2"], "seconds": ["1", "2"]}})),
        ("stub.json", json.dumps(stub_costs().to_dict() | {"layers": float("inf")})),
    ]:
        with naming(name, text):
            result = {"drafter": "n", "model": "m", "dtype": "d", "speedup_total": 1.0}
            files = {
                "prompts.jsonl": json.dumps(MEASURED | line(STEPS, 6)) + "\n",
                "config.yaml": "drafter: {name: none}",
                "result.json": json.dumps(result),
                "stub.json": json.dumps(stub_costs().to_dict()),
            }
            for file, good in files.items():
                (tmp_path / file).write_text(text if file == name else good)
            assert script("predict").main([str(tmp_path), "--hardware", str(tmp_path / "stub.json")]) == 2
            (said,) = capsys.readouterr().err.splitlines()
            assert said.startswith("predict: ") and name in said


@pytest.mark.parametrize(("run", "file"), [("nowhere", "stub.json"), (".", "nowhere.json")])
def test_missing_files_give_one_clear_line(
    run: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("predict").main([str(tmp_path / run), "--hardware", str(tmp_path / file)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("predict: ")


def test_a_run_of_incomplete_lines_gives_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, result = {"drafter": {"name": "none"}}, {"drafter": "n", "model": "m", "dtype": "d", "speedup_total": 1.0}
    said = (("config.yaml", json.dumps(config)), ("result.json", json.dumps(result)))
    for name, text in (("prompts.jsonl", '{"id": "a", "tu'), *said):
        (tmp_path / name).write_text(text)
    assert script("predict").main([str(tmp_path), "--hardware", str(SHIPPED[0])]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("there is no complete line in its prompts.jsonl")


def test_shipped_cost_models_name_their_source() -> None:
    names = {path.stem for path in SHIPPED}
    assert {f"llama2_{size}_{gpu}_roofline" for size in ("7b", "13b") for gpu in ("a100_80gb_sxm", "h100_sxm")} < names
    for path in SHIPPED:
        costs = CostModel.from_dict(json.loads(path.read_text()), str(path))
        assert costs.source.startswith("roofline, not measured" if "roofline" in path.stem else "python run.py")


def test_shipped_rooflines_equal_the_script_s_output(tmp_path: Path) -> None:
    script_module("roofline", "experiments/costs").main([str(tmp_path)])
    for path in tmp_path.iterdir():
        assert path.read_text() == (ROOT / "experiments" / "costs" / path.name).read_text()
