"""The processes of a run: their ranks, despite variables of other launchers, and how a failure of one ends all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from test_resume import LONG, finished

from command_line import ROOT, SMOKE, environment, read_lines, read_result, run, start, wait_until
from forked import Forked, run_forked

FAST = (*SMOKE, "dataset.limit=2", "decoding.max_new_tokens=4", "drafter=none")
STALE = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_PORT": "none",
    "NODE_RANK": "1",
    "TORCHELASTIC_RUN_ID": "1",
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "job",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "JSM_NAMESPACE_RANK": "1",
}
# In the place of run.py: the process of rank 1 fails at its first prompts, and no other does.
BROKEN = """
import os
from selfdraft.core.errors import UserError
from selfdraft.modules.evaluate import EvaluateModule

def fail(*_):
    {failure}

if os.environ.get("LOCAL_RANK") == "1":
    EvaluateModule.test_step = fail
__file__ = {entry!r}
exec(compile(open(__file__).read(), __file__, "exec"))
"""
# In the place of run.py: every process notes the cores and the threads that it has when it begins to decode.
NOTED = """
import json, os, sys, torch
from selfdraft.modules.evaluate import EvaluateModule

def note(self):
    with open(os.path.join({folder!r}, "rank" + str(self.global_rank)), "w") as file:
        json.dump([sorted(os.sched_getaffinity(0)), torch.get_num_threads()], file)

EvaluateModule.on_test_start = note
__file__ = {entry!r}
exec(compile(open(__file__).read(), __file__, "exec"))
"""


@pytest.mark.parametrize("names", [["SLURM_PROCID", "SLURM_NTASKS"], list(STALE)], ids=["of Slurm", "all"])
def test_variables_of_other_launchers_change_nothing(tmp_path: Path, names: list[str]) -> None:
    done = run(*FAST, f"hydra.run.dir={tmp_path}/run", **{name: STALE[name] for name in names})
    assert done.returncode == 0, done.stderr
    assert f"results: {tmp_path}/run" in done.stdout
    assert read_result(tmp_path / "run")["prompts"] == 2
    ignored = ", ".join(name for name in names if name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    assert done.stderr.count("\n") == bool(ignored)
    assert f"{ignored} in the environment ignored" in done.stderr or not ignored


def test_a_user_error_is_reported_despite_variables_of_other_launchers(tmp_path: Path) -> None:
    done = run(*FAST, "hardware.devices=2", f"hydra.run.dir={tmp_path}/run", **STALE)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "selfdraft: hardware.devices=2 needs several processes: use hardware=cpu_ddp"
    )


def test_a_process_of_an_ended_run_starts_no_run_itself(tmp_path: Path) -> None:
    done = run(*FAST, f"hydra.run.dir={tmp_path}/run", SELFDRAFT_MAIN_PROCESS="1", LOCAL_RANK="1")
    assert done.returncode == 1
    assert "the run that started this process has ended" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_run_despite_variables_of_other_launchers(tmp_path: Path) -> None:
    done = run(*FAST, "hardware=cpu_ddp", f"hydra.run.dir='{tmp_path}/a run, mine'", **STALE)
    assert done.returncode == 0, done.stderr
    assert {line["rank"] for line in read_lines(tmp_path / "a run, mine")} == {0, 1}


def run_broken(folder: Path, failure: str) -> subprocess.CompletedProcess[str]:
    """A run of two processes whose second one fails in this way."""
    script = folder / "broken.py"
    script.write_text(BROKEN.format(failure=failure, entry=str(ROOT / "run.py")))
    options = [*FAST, "hardware=cpu_ddp", f"hydra.run.dir={folder}/run"]
    return run_forked(script, options, cwd=ROOT, env=environment(), timeout=300)


@pytest.mark.slow
def test_a_user_error_in_one_process_is_reported_once_and_ends_all_with_status_2(tmp_path: Path) -> None:
    done = run_broken(tmp_path, "raise UserError('its disk is missing')")
    assert done.returncode == 2, done.stderr
    assert "selfdraft: process 1: its disk is missing\n" in done.stderr
    assert done.stderr.count("its disk is missing") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "how"), [("raise ValueError('a bug')", "exit status 1"), ("os.kill(os.getpid(), 9)", "SIGKILL")]
)
def test_a_failing_process_ends_all_with_a_reason(tmp_path: Path, failure: str, how: str) -> None:
    done = run_broken(tmp_path, failure)
    assert done.returncode == 1, done.stderr
    assert f"selfdraft: process 1 has failed ({how})" in done.stderr
    assert ("ValueError: a bug" in done.stderr) == ("bug" in failure)


@pytest.mark.slow
def test_a_user_error_in_all_processes_is_reported_once(tmp_path: Path) -> None:
    done = run(
        *FAST, "hardware=cpu_ddp", "drafter=layer_skip", "drafter.path.skip_mlp=[99]", f"hydra.run.dir={tmp_path}/run"
    )
    assert done.returncode == 2
    assert done.stderr.count("drafter.path.skip_mlp=[99]: this model's layers are 0 to 3") == 1
    assert done.stderr.count("selfdraft: ") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "hardware"),
    [
        (signal.SIGHUP, "cpu"),
        (signal.SIGTERM, "cpu"),
        (signal.SIGINT, "cpu_ddp"),
        (signal.SIGTERM, "cpu_ddp"),
    ],
)
def test_a_stopping_signal_ends_with_130_and_the_hint_how_to_resume(
    tmp_path: Path, number: signal.Signals, hardware: str
) -> None:
    folder = tmp_path / "run"
    running = start(folder, *LONG, f"hardware={hardware}")
    wait_until(running, lambda: finished(folder) >= 1)
    os.killpg(running.pid, number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    hint = f"stopped; finished prompts are kept: the same command with hydra.run.dir={folder} goes on"
    assert hint in " ".join(out.split())
    assert "Traceback" not in out + err
    with pytest.raises(ProcessLookupError):  # no process remains
        os.killpg(running.pid, 0)


def test_nohup_runs_survive_a_closed_terminal(tmp_path: Path) -> None:
    given = [*LONG, f"hydra.run.dir={tmp_path}/run"]
    running = Forked(ROOT / "run.py", given, cwd=ROOT, env=environment(), ignored=[signal.SIGHUP])
    wait_until(running, lambda: finished(tmp_path / "run") >= 1)
    os.killpg(running.pid, signal.SIGHUP)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 0, err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_every_process_has_cores_of_its_own(tmp_path: Path) -> None:
    script, before = tmp_path / "noted.py", os.sched_getaffinity(0)
    script.write_text(NOTED.format(folder=str(tmp_path), entry=str(ROOT / "run.py")))
    given = [*FAST, "hardware=cpu_ddp", f"hydra.run.dir={tmp_path}/run"]
    done = run_forked(script, given, cwd=ROOT, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    (first, threads), (second, others) = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1))
    assert not set(first) & set(second)
    assert len(first) == len(second) == len(before) // 2
    assert threads == others == 1  # experiment=smoke asks for one
