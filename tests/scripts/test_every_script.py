"""Every script and every file of a study answers --help, and takes a wrong file in one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from naming import naming
from script_module import ROOT, script_module

KEPT = {"same_outputs.py", "check_lossless.py", "predict.py", "setup.sh", "families.py"}
MORE = 3  # at most so many others: what measures costs is task=profile, what belongs to one study lies in its folder
PYTHON = sorted(
    path.relative_to(ROOT) for folder in ("scripts", "experiments") for path in (ROOT / folder).rglob("*.py")
)
SHELL = sorted(
    path.relative_to(ROOT) for folder in ("scripts", "experiments") for path in (ROOT / folder).rglob("*.sh")
)
NO_FILE = {  # arguments with a file or folder that is not there, where a script takes one
    "scripts/check_lossless.py": ["nowhere"],
    "scripts/ship_weights.py": ["nowhere", "jump", "--command", "none"],
    "scripts/predict.py": ["nowhere", "--hardware", "nowhere.json"],
    "scripts/same_outputs.py": ["nowhere", "nowhere"],
    "scripts/wandb_dashboard.py": ["--project", " "],
    "experiments/audit/answers.py": ["nowhere", "--count", "0"],
    "experiments/advise/exhaustive.py": ["--prompts", "0"],
    "experiments/audit/tiny.py": ["--models", "0"],
    "experiments/batching/table.py": ["nowhere"],
    "experiments/comparisons/many.py": ["--tokens", "0"],
    "experiments/costs/roofline.py": ["nowhere"],
    "experiments/engines/forwards.py": ["--rounds", "0"],
    "experiments/engines/rounding.py": ["--data", "nowhere.jsonl"],
    "experiments/engines/widened.py": ["nowhere/f16.gguf"],
    "experiments/fused_jacobi/table.py": ["nowhere"],
    "experiments/fused_jacobi/variants.py": ["nowhere", "nowhere", "nowhere"],
    "experiments/growth/growth.py": ["--rounds", "0"],
    "experiments/guard_and_cascade/guard_cost.py": ["nowhere", "--hardware", "nowhere.json"],
    "experiments/hybrids/checkpoints.py": ["nowhere"],
    "experiments/invariance/invariance_cost.py": ["nowhere.jsonl"],
    "experiments/invariance/step_costs.py": ["6"],
    "experiments/jacobi_inits/table.py": ["nowhere"],
    "experiments/jump/reread.py": ["nowhere", "somewhere"],
    "experiments/jump/rounded.py": ["nowhere", "somewhere"],
    "experiments/lookahead_sweep/plot.py": ["nowhere.csv"],
    "experiments/replicas/replicas.py": ["nowhere", "nowhere"],
    "experiments/report/page_size.py": ["nowhere"],
    "experiments/sparse_paths/swift_search.py": ["0"],
    "experiments/sweeps/hundred.py": ["--jobs", "0"],
    "experiments/sparsity/study.py": ["--file", "nowhere.jsonl"],
}


def test_scripts_are_few() -> None:
    there = {path.name for path in (ROOT / "scripts").iterdir() if path.is_file()}
    assert there >= KEPT
    assert len(there - KEPT) <= MORE


def test_a_script_answers_help(capsys: pytest.CaptureFixture[str]) -> None:
    for path in PYTHON:
        with naming(path):
            with pytest.raises(SystemExit) as ended:
                script_module(path.stem, str(path.parent)).main(["--help"])
            said = capsys.readouterr().out
            assert ended.value.code == 0
            assert f"python {path}" in said and "usage:" in said


@pytest.mark.parametrize("path", SHELL, ids=str)
def test_a_shell_script_answers_help(path: Path) -> None:
    done = subprocess.run(["bash", ROOT / path, "--help"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(path) in done.stdout or "make setup" in done.stdout


@pytest.mark.parametrize("path", [path for path in SHELL if path.name == "run.sh"], ids=str)
def test_a_study_without_prompts_gives_one_clear_line(path: Path) -> None:
    done = subprocess.run(["bash", ROOT / path, "nowhere.jsonl"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "there is no file 'nowhere.jsonl'" in line


def test_wrong_arguments_give_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch) -> None:
    for name in NO_FILE:
        with naming(name):
            path = Path(name)
            module = script_module(path.stem, str(path.parent))
            monkeypatch.chdir(tmp_path)
            try:
                status = module.main(NO_FILE[name])
            except SystemExit as ended:
                status = ended.code
            (line,) = capsys.readouterr().err.splitlines()
            assert status == 2 and "Traceback" not in line
