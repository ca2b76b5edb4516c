"""task=generate: one answer on the terminal, with its statistics and certificate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from command_line import SMOKE, composed, run, run_here, said_by, tamper
from selfdraft.app.options.typed_config import to_config
from selfdraft.app.runs.build import build_bench
from selfdraft.core.messages import printable
from selfdraft.drafters.jacobi import Jacobi

ASK = (*SMOKE, "task=generate", "prompt='Why is the sky blue?'", "decoding.max_new_tokens=12", "drafter.costs=flat")


def expected_answer() -> str:
    config = to_config(composed(*ASK))
    bench = build_bench(config, torch.device("cpu"), references=[])
    output = bench.baseline.decode(bench.chat.encode([("user", "Why is the sky blue?")])).output
    assert len(output) == 12
    return bench.chat.decode(output)


def test_the_answer_is_printed_with_statistics_and_certificate(tmp_path: Path) -> None:
    said = said_by(tmp_path / "run", *ASK)
    _, answer = said.split("preparing the drafters …\n")  # lines say what is being done before
    assert answer.startswith(printable(expected_answer()))
    assert "12 tokens in " in said
    assert " tokens per forward (jacobi, float32; prefill " in said
    assert "plain decoding: " in said and "x; output: exact" in said


def test_the_certificate_can_be_left_out(tmp_path: Path) -> None:
    said = said_by(tmp_path / "run", *ASK, "task.certify=false")
    assert "12 tokens in " in said
    assert "plain decoding" not in said


def test_an_answer_that_is_not_lossless_fails_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Jacobi, "observe", tamper)
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path / "run", *ASK)
    assert ended.value.code == 1
    assert "output: mismatch (parts at token 1)" in capsys.readouterr().out


def test_without_a_prompt_it_ends_with_status_2(tmp_path: Path) -> None:
    done = run(*SMOKE, "task=generate", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2
    assert done.stderr.strip() == "selfdraft: task=generate needs a prompt: prompt='Why is the sky blue?'"
