"""The model that a sweep's process loads for its jobs: when, and that no job sees what another one has done to it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from command_line import SMALLEST, composed, environment, read_lines, read_result, run
from selfdraft.app.options.schema_model import ModelConfig, PretrainedModelConfig, TinyModelConfig
from selfdraft.app.sweeps import kept_model
from selfdraft.app.sweeps.kept_model import CPU, KeptModel, model_of
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import LoadedModel
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer

A, B = TinyModelConfig(dtype="float32"), TinyModelConfig(dtype="float32", seed=1)
# What no clock decides in a turn.
SAME = ("id", "turn", "prompt_ids", "output_ids", "ended", "target_forwards", "acceptance_by_depth", "lossless")


def loads(jobs: list[ModelConfig | None], *, known: bool = True) -> list[ModelConfig]:
    """The models that a sweep's process has loaded when these jobs have started, of which each knows the next one."""
    kept, found = KeptModel(), []
    for job, following in zip(jobs, [*jobs[1:], None], strict=True):
        before = kept.loaded
        kept.prepare(job, following if known else None)
        if kept.loaded is not before and kept.config is not None:
            found.append(kept.config)
    return found


def test_a_model_is_loaded_once_for_jobs_that_share_it_and_only_for_these() -> None:
    assert loads([A, A, A]) == [A]
    assert loads([A, A, B, B]) == [A, B]
    assert loads([A, A, B, A, A]) == [A], "the job between them loads its own"
    assert loads([A, B, A, B]) == [], "nothing would be gained"
    assert loads([None, A]) == []
    assert loads([A, A, A], known=False) == [A], "Optuna knows no next job: from the second one on"


def test_one_model_is_kept_at_a_time_and_offered_for_its_own_configuration_once() -> None:
    kept = KeptModel()
    kept.prepare(A, A)
    first = kept.loaded
    assert first is not None
    with kept.offered_to(B):
        assert fingerprint(B.load(CPU).model) != fingerprint(first.model)
    with kept.offered_to(A):
        other = TinyModelConfig(dtype="float32", weights="int8")
        assert other.load(CPU).model is not first.model
        assert A.load(CPU) is first
        assert A.load(CPU) is not first, "the job may have changed the first one"
    assert A.load(CPU) is not first, "outside there is no offer"
    kept.prepare(B, B)
    assert kept.config == B and kept.loaded is not None and kept.loaded is not first


def test_a_job_changes_its_own_copy_only() -> None:
    kept = KeptModel()
    kept.prepare(A, A)
    assert kept.loaded is not None
    before = fingerprint(kept.loaded.model)
    if (job := os.fork()) == 0:
        with kept.offered_to(A), torch.no_grad():
            model = A.load(CPU).model
            for parameter in model.parameters():
                parameter.zero_()
        os._exit(0 if fingerprint(model) != before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]) == 0
    assert fingerprint(kept.loaded.model) == before


def test_a_model_that_cannot_be_loaded_or_is_too_large_is_left_to_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = PretrainedModelConfig(dtype="float32", path="/there/is/none")
    kept = KeptModel()
    kept.prepare(wrong, wrong)
    assert kept.loaded is None
    with kept.offered_to(wrong), pytest.raises(Exception, match="/there/is/none"):
        wrong.load(CPU)
    monkeypatch.setattr(kept_model, "available", lambda device: 1000)
    kept.prepare(A, A)
    assert kept.loaded is None


def test_the_model_of_a_job_is_known_from_its_configuration() -> None:
    assert model_of(composed("model=tiny", "model.seed=3")) == replace(TinyModelConfig(seed=3), dtype=_dtype())
    assert model_of(composed("model=tiny", "task=report")) is None
    assert model_of(composed("model=tiny", "hardware=gpu")) is None
    assert model_of(composed("model=hf", "model.path=somewhere", "model.device_map=auto")) is None


def _dtype() -> str:
    found = model_of(composed("model=tiny"))
    assert found is not None and found.dtype != "auto"
    return found.dtype


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    """Otherwise a job that is given its model would draw others afterwards than one that loads it."""
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for config in (A, PretrainedModelConfig(dtype="float32", path=str(tmp_path))):
        before = torch.get_rng_state()
        assert isinstance(config.load(CPU), LoadedModel)
        assert torch.equal(torch.get_rng_state(), before)


THREADS = """
import os, torch
from selfdraft.app.sweeps.kept_model import CPU, KeptModel
from selfdraft.app.options.schema_model import TinyModelConfig
torch.set_num_threads(2)
config, kept = TinyModelConfig(dtype="float32", weights="int8"), KeptModel()
kept.prepare(config, config)
if os.fork() == 0:
    with kept.offered_to(config):
        assert config.load(CPU) is kept.loaded
    large = torch.ones(2000, 2000)
    assert torch.get_num_threads() == 2 and (large @ large).relu().sum() == 2000**3
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.slow
def test_a_job_has_its_threads_after_the_load() -> None:
    """Threads of OpenMP that had begun before a fork would never answer in it."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "7\n", done.stderr


@pytest.mark.slow
def test_jobs_that_share_a_model_have_the_results_of_jobs_by_themselves(tmp_path: Path) -> None:
    options = [*SMALLEST, "drafter=jacobi", "decoding=sample"]
    sweep = run("-m", *options, "drafter.window=4,6,0", f"hydra.sweep.dir={tmp_path}/sweep", timeout=500)
    assert sweep.returncode == 1, "the last one fails"
    assert sweep.stdout.count("Loading tiny llama for the jobs that share it") == 1
    for window in (4, 6):
        alone = run(*options, f"drafter.window={window}", f"hydra.run.dir={tmp_path}/{window}")
        assert alone.returncode == 0, alone.stderr
        ours, theirs = (read_lines(folder) for folder in (tmp_path / f"sweep/window={window}", tmp_path / f"{window}"))
        assert [_same(line) for line in ours] == [_same(line) for line in theirs]
        counts = ("new_tokens", "target_forwards", "acceptance_by_depth", "lossless", "drafter", "dtype", "engine")
        results = read_result(tmp_path / f"sweep/window={window}"), read_result(tmp_path / f"{window}")
        assert all(results[0][name] == results[1][name] for name in counts)
        files = [
            sorted(p.name for p in (tmp_path / name).iterdir()) for name in (f"sweep/window={window}", str(window))
        ]
        assert files[0] == files[1]
    failed = pd.read_csv(tmp_path / "sweep/sweep.csv").set_index("drafter.window").loc[0]
    by_itself = run(*options, "drafter.window=0", f"hydra.run.dir={tmp_path}/0")
    assert failed["status"] == f"failed (exit {by_itself.returncode})"
    assert failed["reason"] == by_itself.stderr.strip().splitlines()[-1].removeprefix("selfdraft: ")


def _same(line: dict) -> dict:
    return {name: line[name] for name in SAME}
