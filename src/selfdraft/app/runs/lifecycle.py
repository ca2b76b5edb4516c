"""The life of a run, the same for every task: what comes before its work, and what comes after it.

1. The run is refused if its memory cannot fit. 2. `Run.begin` locks and claims the folder, notes the environment, and
starts the logger. 3. The task works. 4. Ctrl-C is answered with what is kept; the logger is closed, the lock released,
and the closing lines say where the results are.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from rich.console import Console

from selfdraft.app.options.schemas import Config
from selfdraft.app.options.typed_config import defaults_of
from selfdraft.app.runs.build import measured_config, use_threads
from selfdraft.app.runs.recording import LOG, log_error, recorded
from selfdraft.app.runs.session import owned, shown
from selfdraft.app.terminal.console import make_console
from selfdraft.app.terminal.signals import INTERRUPTED, interrupted_by
from selfdraft.core.messages import harmless
from selfdraft.tracking.dashboards.lineage import log_lineage
from selfdraft.tracking.dashboards.loggers import close_logger, log_result, make_logger
from selfdraft.tracking.dashboards.run_label import RunLabel, shown_config
from selfdraft.tracking.dashboards.wandb_commands import how_to_look
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.environment import describe_environment
from selfdraft.tracking.files.rank import process_rank
from selfdraft.tracking.files.records import PROMPTS, Line
from selfdraft.tracking.files.run_folder import claim_run_dir
from selfdraft.tracking.files.run_status import COMPLETED, FAILED, RUNNING, STOPPED, RunStatus


@dataclass
class Run:
    """One run of a task, in this process.

    Attributes:
        composed: what Hydra composed `config` from.
        folder: where the results go.
        console: prints on rank 0 only.
        environment: of `describe_environment`, once the run has begun.
        logger: of `make_logger`, once the run has begun; None without one.
        reason: why the run failed, in one line; a task that finds it out itself sets it before it exits.
    """

    config: Config
    composed: DictConfig
    folder: Path
    is_rank_zero: bool
    console: Console
    environment: dict[str, Any] = field(default_factory=dict)
    logger: Logger | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    begun: bool = False
    reason: str = ""
    started: float = field(default_factory=time.monotonic)

    def begin(
        self,
        announce: Sequence[str] = (),
        *,
        name: str = "",
        records: str = PROMPTS,
        started: Path | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Lock and claim the folder, note the environment, print `announce`, and start the logger.

        Args:
            name: of what runs, for the logger; by default the drafter's.
            records, started, facts: see `claim_run_dir`, where `records` is called `name`.

        Raises:
            UserError: the folder belongs to another run; the logger cannot be started.
        """
        task = self.config.task.name
        self.stack.enter_context(owned(self.folder, self.is_rank_zero, task))
        self.environment = describe_environment(self.config.hardware.torch_device)
        config = measured_config(self.composed)
        if self.is_rank_zero:
            claim_run_dir(
                self.folder,
                config,
                task=task,
                name=records,
                started=started,
                facts=facts,
                defaults=defaults_of(self.config),
            )
            write_json_atomic(self.folder / "environment.json", self.environment)
            RunStatus(RUNNING).write(self.folder)
            self.stack.enter_context(recorded(self.folder / LOG))
            for line in announce:
                self.console.print(line)
        self.begun = True
        self.logger = make_logger(
            self.config.logger.name,
            mode=self.config.logger.mode,
            project=self.config.logger.project,
            save_dir=self.folder,
            name=f"{name or self.config.drafter.label}-{self.folder.name}",
            config={**shown_config(config, task), "label": name or self.config.drafter.label},
            label=RunLabel.of(
                self.folder,
                name or self.config.drafter.label,
                task,
                tags=(name or self.config.drafter.label, self.config.model.label, self.config.dataset.name),
                given=vars(self.config.logger),
            ),
        )

    def log(self, result: Mapping[str, Any], lines: Sequence[Line] = (), picture: Path | None = None) -> None:
        """Log a finished result. A failure is a warning, because the folder has everything."""
        with harmless("the result was not logged"):
            log_result(self.logger, result, lines, picture if picture is not None and picture.exists() else None)


@contextmanager
def lifecycle(config: Config, composed: DictConfig, folder: Path, *, kept: str) -> Iterator[Run]:
    """Give a task its run, and end it.

    Args:
        kept: the results that are kept when the run is stopped, for the message; empty for a task that begins anew.

    Raises:
        SystemExit: status 130 after Ctrl-C, SIGTERM or SIGHUP.
    """
    is_rank_zero = process_rank() == 0
    run = Run(config, composed, folder, is_rank_zero, make_console(quiet=not is_rank_zero, soft_wrap=True))
    use_threads(config.hardware)
    status = FAILED
    with run.stack:
        try:
            with interrupted_by(signal.SIGHUP, signal.SIGTERM):
                yield run
            status = COMPLETED
            if run.begun:
                with harmless("what the run has used and made was not logged"):
                    log_lineage(run.logger, inputs_of(config), folder)
        except KeyboardInterrupt:
            status = STOPPED
            _stopped(run, kept)
        except SystemExit as error:
            run.reason = run.reason or f"exit status {error.code}: see {LOG}"
            raise
        except Exception as error:
            if is_rank_zero and run.begun:
                run.reason = log_error(folder / LOG, error)
            raise
        finally:
            close_logger(run.logger, failed=status != COMPLETED, reason=run.reason)
            if is_rank_zero and run.begun:
                with harmless("status.json was not written"):
                    RunStatus(status, run.reason, time.monotonic() - run.started).write(folder)
    if is_rank_zero and run.begun:
        run.console.print(f"results: {shown(folder)}")
        if config.logger.name == "wandb" and (look := how_to_look(folder, config.logger.mode)):
            run.console.print(look)


def inputs_of(config: Config) -> list[Path]:
    """Return what earlier runs may have made of what the configuration names: texts, or a drafter."""
    drafter = config.artifact or getattr(getattr(config.drafter, "path", config.drafter), "adapter", None)
    texts = config.finetune.data if config.task.name == "finetune" else []
    named = [Path(place).expanduser() for place in (drafter, *texts) if place]
    return [place for place in named if place.exists()]


def _stopped(run: Run, kept: str) -> None:
    """Print what is kept, and exit."""
    again = f"{kept}: the same command with hydra.run.dir={shown(run.folder)} goes on"
    with suppress(OSError):  # the terminal may be gone
        run.console.print(f"\nstopped; {again if kept and run.begun else 'nothing is kept'}")
    sys.exit(INTERRUPTED)
