import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from example_lines import evaluation
from selfdraft.core.errors import UserError
from selfdraft.tracking.dashboards.loggers import close_logger, flatten, log_result, make_logger
from selfdraft.tracking.dashboards.run_label import RunLabel, shown_config
from selfdraft.tracking.dashboards.running import after_a_turn
from selfdraft.tracking.dashboards.wandb_commands import how_to_look, how_to_look_at_all, wandb_mode
from selfdraft.tracking.display.picture import plot_result
from selfdraft.tracking.files.run_folder import Mark
from selfdraft.tracking.numbers.summary import summarize

pytestmark = pytest.mark.slow

LINES = evaluation()
LINES[0] |= {"joules": 15.0, "steps": [[[1, 2], None, [0], 9, "pool", None]] * 5}  # 10 tokens; the drafts had 15
RESULT = summarize(LINES, task="evaluate", model="tiny", drafter="jacobi", dataset="bundled", seed=0)
WANDB = Path(sys.executable).with_name("wandb")


def logger_for(folder: Path, name: str = "run"):
    return make_logger(
        "wandb", mode="offline", project="selfdraft-test", save_dir=folder, name=name, config={"drafter": {"window": 4}}
    )


def only_run(folder: Path) -> Path:
    (run,) = (folder / "wandb").glob("offline-run-*")
    return run


def read_back(run: Path) -> dict:
    done = subprocess.run([WANDB, "leet", "inspect", "--summary", "--json", run], capture_output=True, check=True)
    return json.loads(done.stdout)


def acceptance_of(run: Path) -> dict[int, float]:
    done = subprocess.run([WANDB, "leet", "inspect", "--json", run], capture_output=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    points = [record["history"]["item"] for record in records if record["type"] == "history"]
    return {point["depth"]: point["acceptance_by_depth"] for point in points if "acceptance_by_depth" in point}


@pytest.mark.slow
def test_an_offline_run_is_written_quietly_and_reads_back(tmp_path, capfd):
    picture = tmp_path / "result.png"
    plot_result(RESULT, picture)
    before = dict(os.environ)
    logger = logger_for(tmp_path)
    log_result(logger, RESULT, evaluation(), picture)
    close_logger(logger)
    assert capfd.readouterr() == ("", "")
    assert {name for name in os.environ if name.startswith("WANDB")} - before.keys() <= {"WANDB_SERVICE"}

    run = only_run(tmp_path)
    found = read_back(run)
    assert (found["state"], found["name"], found["project"]) == ("finished", "run", "selfdraft-test")
    assert found["config"] == {"drafter": {"window": 4}}
    summary = found["summary"]
    assert summary["speedup/median"] == pytest.approx(1.8)
    assert summary["tokens_per_forward"] == 1.5
    assert summary["lossless/mismatch"] == 0
    assert len([value for name, value in summary.items() if isinstance(value, int | float)]) <= 24
    assert "acceptance_length" in summary and "speedup_by_family_table" in summary
    assert summary["energy/joules_per_token/drafter"] == pytest.approx(1.5)
    assert summary["oracle/reached"] == pytest.approx(2 / 3)
    assert summary["prompts_table"]["nrows"] == 4

    assert acceptance_of(run) == {1: pytest.approx(28 / 90), 2: pytest.approx(11 / 18), 3: pytest.approx(8 / 9)}

    (table,) = run.glob("files/media/table/prompts*.json")
    prompts = json.loads(table.read_text())
    first = dict(zip(prompts["columns"], prompts["data"][0], strict=True))
    assert first == {
        "id": "a", "category": "writing", "turn": 0, "prompt": "prompt of a", "output": "answer to a",
        "new tokens": 10, "tokens per forward": 2.0, "speedup": 2.0, "lossless": "exact",
    }  # fmt: skip
    assert list(run.glob("files/media/images/*.png"))


def test_runs_of_one_process_are_separate_and_failures_are_recorded(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        logger = logger_for(tmp_path / name, name)
        logger.log_metrics({"x": 1.0})
        close_logger(logger, failed=name == "second")
        assert wandb.run is None
    first, second = (read_back(only_run(tmp_path / name)) for name in ("first", "second"))
    assert first["run_id"] != second["run_id"]
    assert (first["name"], first["exit_code"]) == ("first", 0)
    assert (second["name"], second["exit_code"]) == ("second", 1)


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = logger_for(tmp_path)
    assert isinstance(logger, WandbLogger)
    log_result(logger, RESULT, evaluation())
    close_logger(logger)
    assert wandb.run is None
    assert list(tmp_path.iterdir()) == []


def test_the_printed_commands_find_the_run(tmp_path, monkeypatch):
    assert how_to_look(tmp_path) == ""
    close_logger(logger_for(tmp_path))
    monkeypatch.chdir(tmp_path)
    look, send = how_to_look(tmp_path).splitlines()
    folder = only_run(tmp_path).relative_to(tmp_path)
    assert look.endswith(f"wandb leet {folder}")
    assert send.endswith(f"wandb sync {folder}")
    assert "sync" not in how_to_look(tmp_path, "online")
    synced = subprocess.run([WANDB, "sync", "--dry-run", folder], capture_output=True, text=True)
    assert str(folder) in synced.stdout + synced.stderr


def test_csv_keeps_the_numbers(tmp_path):
    logger = make_logger("csv", project="p", save_dir=tmp_path, name=None, config={})
    log_result(logger, RESULT, evaluation())
    close_logger(logger)
    header, values = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), values.split(","), strict=True))
    assert float(row["speedup/median"]) == pytest.approx(1.8)


def test_logger_none_is_no_logger(tmp_path):
    logger = make_logger("none", project="p", save_dir=tmp_path, name=None, config={})
    assert logger is None
    log_result(logger, RESULT, evaluation())
    close_logger(logger)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_logger_is_refused(tmp_path):
    with pytest.raises(UserError, match="wandb, tensorboard, mlflow, csv or none"):
        make_logger("paper", project="p", save_dir=tmp_path, name=None, config={})


def test_a_run_that_cannot_start_gives_one_clear_line(tmp_path, monkeypatch):
    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"No API key configured\..*logger\.mode=offline") as caught:
        logger_for(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("WANDB_TAGS", "x" * 100, "Tags must be between 1 and 64 characters"),
        ("WANDB_BASE_URL", "not a url", "valid URL"),
        ("WANDB_MODE", "foo", "choose one of online, offline, disabled"),
    ],
    ids=["tags", "address", "mode"],
)
def test_a_variable_that_wandb_refuses_is_named(tmp_path, monkeypatch, name, value, reason):
    wandb.teardown()  # as in a new process: it reads its variables once
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        make_logger("wandb", project="p", save_dir=tmp_path, name="run", config={})
    assert f"{name}={value[:80]}" in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stale", ["3-1-unix-/tmp/nothing-listens-here", "garbage"])
def test_the_service_of_another_process_is_not_used(tmp_path, monkeypatch, stale):
    """It may have ended: connecting to it took half a minute and then failed."""
    monkeypatch.setenv("WANDB_SERVICE", stale)
    wandb.teardown()  # as in a new process
    close_logger(logger_for(tmp_path))
    assert read_back(only_run(tmp_path))["state"] == "finished"


def test_the_mode_is_the_option_then_the_variable_then_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert wandb_mode(None) == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert (wandb_mode(None), wandb_mode("online")) == ("disabled", "online")
    assert make_logger("wandb", project="p", save_dir=tmp_path, name="run", config={}) is None
    assert make_logger("wandb", mode="disabled", project="p", save_dir=tmp_path, name="run", config={}) is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WANDB_MODE", "dryrun")  # its older name
    assert wandb_mode(None) == "offline"


def test_a_broken_wandb_is_a_warning_unless_online_was_requested(tmp_path, monkeypatch, capsys):
    def broken(**_):
        raise PermissionError(13, "Permission denied", "/home/x")

    monkeypatch.setattr(wandb, "init", broken)
    assert logger_for(tmp_path) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: W&B did not start (") and "logger=none" in line
    with pytest.raises(UserError, match="logger=none"):
        make_logger("wandb", mode="online", project="p", save_dir=tmp_path, name="run", config={})


def test_a_training_continues_after_its_wandb_service_was_killed(tmp_path, capsys):
    logger = logger_for(tmp_path)
    logger.log_metrics({"x": 1.0}, 0)
    os.kill(wandb.setup()._connection._proc._process.pid, signal.SIGKILL)
    time.sleep(0.5)
    for step in range(1, 4):
        logger.log_metrics({"x": 1.0}, step)
    close_logger(logger)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: W&B does not log any more, the run goes on: ")
    assert last.startswith("warning: the W&B run is not complete: ")


def test_flatten_keeps_numbers_only():
    tree = {"a": {"b": 1, "c": None}, "d": [1], "e": "x", "f": True, "g": 0.5}
    assert dict(flatten(tree)) == {"a/b": 1, "g": 0.5}


def on_a_terminal(command: list[str], until: str, times: int, seconds: float = 60.0) -> str:
    """What a program writes to a terminal, without colours, until a text was there so many times; it is ended then."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    running = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    written, end = "", time.monotonic() + seconds
    try:
        while written.count(until) < times and time.monotonic() < end:
            if select.select([ours], [], [], 0.2)[0]:
                written += os.read(ours, 1 << 16).decode(errors="replace")
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)


def test_jobs_of_a_sweep_share_a_folder_and_a_resumed_run_keeps_its_id(tmp_path):
    sweep = tmp_path / "my sweep"
    Mark("sweep").write(sweep)
    given = {"tags": ["paper", "x" * 100], "notes": "first try"}
    for job in ("window=4", "window=8", "window=4"):
        label = RunLabel.of(sweep / job, "jacobi", "evaluate", tags=("jacobi", "tiny"), given=given)
        close_logger(make_logger("wandb", project="p", save_dir=sweep / job, name=None, config={}, label=label))
    runs = [read_back(run) for run in sorted((sweep / "wandb").glob("offline-run-*"))]
    assert len(runs) == 3 and len({run["run_id"] for run in runs}) == 2
    assert sorted(run["name"] for run in runs) == ["jacobi-my sweep/window=4"] * 2 + ["jacobi-my sweep/window=8"]
    assert (label.group, label.job_type, label.tags) == ("my sweep", "evaluate", ("jacobi", "tiny", "paper", "x" * 64))
    assert "window=8" not in how_to_look(sweep / "window=4")
    look = shlex.split(how_to_look_at_all(sweep).removeprefix("look at all: "))
    assert look[1:] == ["leet", str(sweep / "wandb")] and how_to_look_at_all(sweep / "window=4") == ""
    # The selected run's line is drawn over another one, letter by letter where they differ; the others are whole.
    shown = on_a_terminal([str(WANDB), *look[1:]], until="offline-run-", times=2)
    assert shown.count("○ offline-run-") == 2
    listed = subprocess.run([WANDB, "sync", "--dry-run", sweep / "wandb"], capture_output=True, text=True)
    assert listed.returncode == 0


def test_a_run_without_a_sweep_has_no_group_unless_one_is_given(tmp_path):
    given = {"group": None, "tags": []}
    assert RunLabel.of(tmp_path / "a", "pool", "evaluate", tags=(), given=given).group is None
    assert RunLabel.of(tmp_path / "a", "pool", "evaluate", tags=(), given={"group": "g"}).group == "g"


def test_a_table_of_runs_has_only_options_that_the_task_uses():
    config = {"seed": 0, "finetune": {}, "calibrate": {}, "audit": {}, "distill": {}, "drafter": {}, "model": {}}
    assert set(shown_config(config, "evaluate")) == {"seed", "drafter", "model"}
    assert set(shown_config(config, "finetune")) == {"seed", "finetune", "model"}


def test_what_is_logged_after_each_turn():
    lines = evaluation()
    for count in range(1, len(lines) + 1):
        numbers = after_a_turn(lines[:count], seed=0)
        assert numbers["running/speedup_low"] <= numbers["running/speedup"] <= numbers["running/speedup_high"]
    assert numbers["running/speedup"] == pytest.approx(RESULT["speedup_total"])
    assert numbers["running/tokens_per_forward"] == pytest.approx(RESULT["tokens_per_forward"])
    assert numbers["running/acceptance"] == pytest.approx((28 + 11 + 8) / (90 + 18 + 9))


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_other_loggers_keep_the_numbers(kind, tmp_path):
    pytest.importorskip({"tensorboard": "tensorboard", "mlflow": "mlflow"}[kind])
    logger = make_logger(kind, project="p", save_dir=tmp_path, name="run", config={"drafter": {"window": 4}})
    log_result(logger, RESULT, evaluation())
    close_logger(logger)
    if kind == "mlflow":
        from mlflow import MlflowClient

        (found,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs([logger.experiment_id])
        assert found.data.metrics["tokens_per_forward"] == pytest.approx(1.5)
        assert (found.info.run_name, found.data.params["drafter/window"]) == ("run", "4")
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert events.Scalars("tokens_per_forward")[0].value == pytest.approx(1.5)
