"""Loggers: W&B (offline by default), CSV or none. Start them, log results, and close them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from selfdraft.core.errors import UserError
from selfdraft.core.messages import harmless, one_line, warn
from selfdraft.tracking.dashboards.other_loggers import OTHER_LOGGERS
from selfdraft.tracking.dashboards.run_label import RunLabel, run_id, sweep_of
from selfdraft.tracking.dashboards.wandb_commands import wandb_mode
from selfdraft.tracking.dashboards.wandb_media import charts, for_the_table_of_runs, prompt_table
from selfdraft.tracking.display.leaderboard import rows_of
from selfdraft.tracking.files.rank import process_rank
from selfdraft.tracking.files.records import Line
from selfdraft.tracking.numbers.lines import CONTENDERS

if TYPE_CHECKING:
    import wandb

_LABELS = ("task", "model", "drafter", "dataset", "seed")
_DEPTH, _ACCEPTANCE = "depth", "acceptance_by_depth"
# Settings of W&B whose environment variable has another name.
_ANOTHER_NAME = {"run_tags": "WANDB_TAGS", "run_name": "WANDB_NAME"}


class _Wandb(WandbLogger):
    """Lightning's logger for W&B, except that a training goes on if W&B's service has ended."""

    _lost = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics. The first failure is a warning, and nothing is logged after it."""
        if self._lost:
            return
        self._lost = True
        with harmless("W&B does not log any more, the run goes on"):
            super().log_metrics(metrics, step)
            self._lost = False


def make_logger(
    kind: str,
    *,
    mode: str | None = None,
    project: str,
    save_dir: Path,
    name: str | None,
    config: Mapping[str, Any],
    label: RunLabel | None = None,
) -> Logger | None:
    """Start and return the logger of one run; None for `kind` "none", or if W&B is disabled or does not start offline.

    Only rank 0 starts a W&B run; on other ranks the logger exists but logs nothing.

    Args:
        kind: "wandb", "csv" or "none".
        mode: of W&B (see `wandb_mode`). Offline uses no network and needs no account.
        project: of W&B.
        save_dir: the run's folder. CSV, TensorBoard and MLflow write into it, and so does W&B, except that all jobs of
            a sweep share the folder `wandb` of the sweep, where one command shows or uploads them.
        name: of the run, as it is listed, if there is no `label`.
        config: shown as the run's configuration.
        label: how W&B lists the run.

    Raises:
        UserError: the kind is unknown; W&B refuses a setting or reports an error; or it did not start in mode online.
    """
    if kind == "none":
        return None
    if kind == "csv":
        return CSVLogger(save_dir=save_dir, name="", version="csv")
    label = label or RunLabel(name or Path(save_dir).name)
    if kind in OTHER_LOGGERS:
        return OTHER_LOGGERS[kind](Path(save_dir), project, label, config)
    if kind != "wandb":
        raise UserError(f"logger {kind!r} is unknown: choose wandb, {', '.join(OTHER_LOGGERS)}, csv or none")
    chosen = wandb_mode(mode)
    if chosen == "disabled":
        return None
    if process_rank() != 0:
        return _Wandb(save_dir=save_dir, project=project, name=label.name)
    import wandb  # imported here because it takes a second, which runs without W&B do not need

    Path(save_dir).mkdir(parents=True, exist_ok=True)
    # This variable names the service of another process, which may have ended; without it, W&B starts a new one.
    os.environ.pop("WANDB_SERVICE", None)
    try:
        # Started here rather than by WandbLogger, which would set WANDB_MODE for the whole process and its children.
        run = wandb.init(
            project=project,
            entity=label.entity,
            name=label.name,
            group=label.group,
            job_type=label.job_type,
            tags=label.tags or None,
            notes=label.notes,
            id=run_id(Path(save_dir)),
            resume="allow" if chosen == "online" else None,  # offline, the same id alone makes `wandb sync` join them
            dir=sweep_of(Path(save_dir)) or save_dir,
            mode=chosen,
            config=dict(config),
            # silent: no banner. console off: the terminal, with its progress bars, is not copied to a log file.
            settings=wandb.Settings(silent=True, console="off"),
        )
        _define_axes(run)
    except ValueError as error:
        raise UserError(f"W&B refuses {_refused_setting(error)}; mend that, or use logger=none") from error
    except wandb.Error as error:
        reason = one_line(str(error).strip().splitlines()[0])
        raise UserError(f"W&B did not start ({reason}): run `wandb login`, or use logger.mode=offline") from error
    except Exception as error:  # such as a service that does not start, or a home folder that cannot be written
        reason = one_line(error) or type(error).__name__
        if chosen == "online":
            raise UserError(f"W&B did not start ({reason}): use logger.mode=offline or logger=none") from error
        warn(f"W&B did not start ({reason}): results are only in {save_dir}; logger=none leaves W&B out")
        return None
    return _Wandb(save_dir=save_dir, project=project, name=label.name, experiment=run)


def log_result(
    logger: Logger | None, result: Mapping[str, Any], lines: Sequence[Line] = (), picture: Path | None = None
) -> None:
    """Log the result of a finished task on rank 0: numbers to any logger; prompts, acceptance and picture to W&B only.

    Call it after result.json is written, because it passes on any exception of W&B and of the disk.

    Args:
        logger: of `make_logger`.
        result: of `summary.summarize`, or of another task; one with contenders is also shown as a table and a chart.
        lines: the lines that `result` was made from, if prompts were measured. A line's `prompt_text` is shown if there
            is one.
        picture: of `picture.plot_result`.
    """
    if logger is None or process_rank() != 0:
        return
    numbers = dict(flatten({name: value for name, value in result.items() if name not in _LABELS}))
    if not isinstance(logger, WandbLogger):
        logger.log_metrics(numbers)
        logger.save()
        return
    import wandb

    run = logger.experiment
    run.summary.update(for_the_table_of_runs(numbers))
    for depth, counts in enumerate(result.get("acceptance_by_depth", ()), start=1):
        if counts["offered"]:
            run.log({_DEPTH: depth, _ACCEPTANCE: counts["accepted"] / counts["offered"]})
    media: dict[str, Any] = {"prompts_table": prompt_table(lines)} if lines else {}
    if CONTENDERS in result:
        columns, rows = rows_of(result)
        media["leaderboard"] = board = wandb.Table(columns=columns, data=rows)
        media["speedups"] = wandb.plot.bar(board, "contender", "speedup", title="speedup over plain decoding")
    media |= charts(result)
    if picture is not None:
        media["picture"] = wandb.Image(str(picture))
    if media:
        run.log(media)


def close_logger(logger: Logger | None, *, failed: bool = False, reason: str = "") -> None:
    """Write out everything and close the logger. The next run of this process would continue an open W&B run.

    A failure is only a warning, because the run's folder has everything that was to be logged.

    Args:
        reason: why the run failed; W&B lists it with the run.
    """
    if logger is None:
        return
    if not isinstance(logger, WandbLogger):
        with harmless("the logger's files are not complete"):
            logger.finalize("failed" if failed else "success")
        return
    import wandb

    if wandb.run is None:
        return
    finished = False
    with harmless("the W&B run is not complete"):
        if reason:
            wandb.run.summary["reason"] = reason
        wandb.finish(exit_code=int(failed))
        finished = True
    if not finished:  # the service has ended: detach, so that neither the next run nor the exit of the process uses it
        with suppress(Exception):
            wandb.teardown()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested mapping with names such as by_category/qa/speedup/low; lists are left out."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _refused_setting(error: ValueError) -> str:
    """Describe the setting that W&B refuses, by the environment variable it comes from, with the reason."""
    found = error.errors() if hasattr(error, "errors") else []  # of pydantic, with which W&B checks its settings
    if not found or not found[0]["loc"]:
        return f"a setting ({one_line(error)})"
    setting = str(found[0]["loc"][0])
    name = _ANOTHER_NAME.get(setting, f"WANDB_{setting.upper()}")
    value = os.environ.get(name)
    given = f"its setting {setting}" if value is None else f"{name}={one_line(value)[:80]}"
    return f"{given} ({one_line(found[0]['msg'])})"


def _define_axes(run: wandb.Run) -> None:
    """Plot training curves over Lightning's steps, as WandbLogger does for runs that it starts; acceptance over depth.

    Acceptance is a series rather than a bar chart, because a series is also shown in the terminal, and those of several
    runs are overlaid.
    """
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    run.define_metric(_DEPTH, hidden=True, summary="none")
    run.define_metric(_ACCEPTANCE, step_metric=_DEPTH, summary="none")
