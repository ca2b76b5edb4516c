"""drafter=auto: it takes what is kept for the model and the machine, and measures where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from command_line import SMOKE, ErrorLine, composed, read_result, said_by
from naming import naming
from selfdraft.app.options.typed_config import to_config
from selfdraft.app.runs.build import settled, use_threads
from selfdraft.app.tasks import auto
from selfdraft.app.tasks.auto import affordable, cache_for, with_drafter
from selfdraft.drafters.specs import spec_of
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.tracking.files import cost_cache
from selfdraft.tracking.files.advice_cache import Advice

FEW = (*SMOKE, "drafter=auto", "dataset.limit=1", "decoding.max_new_tokens=4", "decoding.min_new_tokens=4")
ADVICE = Advice("suffix branches=2", "suffix branches=2", 1.39, 1.2, 1.5, "2026-11-29", "task=advise", 20)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cost_cache, "crowded", lambda *_: False)  # tests run beside others
    return tmp_path / "cache"


def keep(advice: Advice) -> None:
    config = to_config(settled(composed(*FEW)))
    use_threads(config.hardware)
    assert cache_for(config, config.model.load(torch.device("cpu")).model).write(advice)


def refuse_to_measure(*_: Any) -> None:
    raise AssertionError("it is known already")


def test_what_is_kept_is_taken_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(ADVICE)
    monkeypatch.setattr(auto, "_measured", refuse_to_measure)
    said = said_by(tmp_path / "run", *FEW)
    line = "drafter=auto: suffix branches=2, 1.39 × [1.20, 1.50] on 20 prompts on 2026-11-29 by task=advise"
    assert line in said.splitlines()
    assert read_result(tmp_path / "run")["drafter"] == "suffix"
    written = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert written.drafter == {**written.drafter, "name": "suffix", "branches": 2}


def test_a_run_is_resumed_with_the_same_drafter(tmp_path: Path) -> None:
    keep(ADVICE)
    said_by(tmp_path / "run", *FEW)
    named = [option for option in FEW if option != "drafter=auto"]
    again = said_by(tmp_path / "run", *named, "drafter=suffix", "drafter.branches=2")
    assert "resuming" in again


@pytest.mark.parametrize("task", ["generate", "trace"])
def test_other_tasks_take_it_too(task: str, tmp_path: Path) -> None:
    keep(ADVICE)
    said = said_by(tmp_path / "run", *FEW, f"task={task}", "prompt=a b a b a b")
    assert "drafter=auto: suffix branches=2" in said and "(suffix, float32" in said


def test_a_guarded_drafter_is_guarded(tmp_path: Path) -> None:
    keep(Advice("guarded suffix", "guarded suffix", 1.39, 1.2, 1.5, "2026-11-29", "task=advise", 20))
    said_by(tmp_path / "run", *FEW)
    written = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert written.decoding.guard and written.drafter.name == "suffix"


def test_without_a_clear_gain_it_is_plain_decoding(tmp_path: Path) -> None:
    keep(Advice("none", "pool", 1.05, 0.97, 1.2, "2026-11-29", "task=advise", 20))
    said = said_by(tmp_path / "run", *FEW)
    assert "drafter=auto: none: no clear gain; the best, pool, had 1.05 × [0.97, 1.20]" in said
    assert read_result(tmp_path / "run")["drafter"] == "none"


@pytest.mark.slow
def test_where_nothing_is_kept_it_measures_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "TOKENS", 12)
    monkeypatch.setattr(auto, "QUICK", ("suffix", "prompt_lookup", "pool"))
    said = said_by(tmp_path / "run", *FEW)
    assert "measuring, for up to a minute" in said
    (file,) = (cache / "advice").iterdir()
    kept = json.loads(file.read_text())["advice"]
    assert kept["by"] == "drafter=auto" and kept["best"] in auto.QUICK
    assert read_result(tmp_path / "run")["drafter"] == kept["drafter"]
    monkeypatch.setattr(auto, "_measured", refuse_to_measure)
    assert f"drafter=auto: {kept['drafter']}" in said_by(tmp_path / "second", *FEW)
    with pytest.raises(AssertionError, match="it is known already"):
        said_by(tmp_path / "third", *FEW, "drafter.again=true")


@pytest.mark.slow
def test_what_is_measured_on_a_busy_machine_is_taken_but_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_cache, "crowded", lambda *_: True)
    monkeypatch.setattr(auto, "TOKENS", 4)
    monkeypatch.setattr(auto, "QUICK", ("suffix",))
    said = said_by(tmp_path / "run", *FEW)
    assert "warning: other programs kept this machine busy" in said and "drafter=auto: " in said
    assert not (cache / "advice").exists()


def test_other_weights_have_an_advice_of_their_own() -> None:
    config = to_config(settled(composed(*FEW)))
    one, other = (cache_for(config, tiny_model("llama", seed=seed)) for seed in (0, 1))
    assert one.write(ADVICE) and other.read() is None


def test_it_is_refused_where_it_has_no_meaning(error_line: ErrorLine) -> None:
    for task in ("profile", "compare", "advise", "distill_data", "calibrate"):
        with naming(task):
            line = error_line("drafter=auto", f"task={task}")
            assert line.startswith("drafter=auto is for task=evaluate, task=generate, task=trace")
            assert f"task={task}" in line
    for options in (["decoding.batch_size=2"], ["hardware=cpu_ddp"]):
        assert error_line("drafter=auto", *options).startswith("drafter=auto works with one process and ")


def test_a_quick_measurement_has_as_many_prompts_and_tokens_as_there_is_time_for() -> None:
    assert affordable(0.001) == (8, 32)
    assert affordable(0.04) == (7, 32)
    assert affordable(0.1) == (4, 23)
    assert affordable(5.0) == (4, 16)


def test_the_composed_configuration_gets_the_drafter() -> None:
    given = composed(*FEW)
    for text, name, guard in (
        ("pool edges=2", "pool", False),
        ("guarded jacobi path=swift mode=literal", "jacobi", True),
    ):
        decided = with_drafter(given, spec_of(text))
        config = to_config(settled(decided))
        assert config.drafter == spec_of(text).config and config.drafter.name == name
        assert config.decoding.guard == guard
    assert given.drafter.name == "auto"
