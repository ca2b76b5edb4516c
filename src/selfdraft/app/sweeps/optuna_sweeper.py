"""A Hydra sweeper that lets Optuna choose the values: `python run.py -m hydra/sweeper=optuna …`.

The published plugin pins an Optuna of years ago and begins again after a kill. This one only asks and tells: Optuna
proposes, the launcher runs, result.json answers. The study is kept beside the jobs, so that a sweep can be continued.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from selfdraft.app.sweeps.sweep_index import PRUNED
from selfdraft.app.sweeps.sweep_table import dig
from selfdraft.core.errors import UserError

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

JOURNAL, STUDY = "optuna.journal", "sweep"  # in the sweep's folder, and the name of the study in it
SAMPLERS = ("tpe", "nsga2", "random")
OWN = {"objective": "maximize"}  # the task's own


class OptunaSweeper(Sweeper):
    """Runs trials in batches of as many as the launcher runs at once."""

    def __init__(
        self,
        sampler: str = "tpe",
        n_trials: int = 20,
        objectives: Sequence[str] = (),
        seed: int = 0,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a sweeper.

        Args:
            sampler: tpe, nsga2 (several objectives) or random.
            n_trials: trials in all, those of an earlier sweep in the same folder included.
            objectives: keys in result.json that shall become large, such as `speedup/median`, or small if a minus is
                before them, such as `-peak_memory_mb`; none for the task's own objective.
            seed: of the sampler.
            params: what to try, by option, as in the command: `interval(0.1,0.6)`, `range(1,5)` or `choice(a,b)`.
        """
        self.sampler, self.n_trials, self.seed = sampler, n_trials, seed
        self.objectives = {
            name.removeprefix("-"): "minimize" if name[:1] == "-" else "maximize" for name in objectives or OWN
        }
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher.

        Raises:
            UserError: an option has another value than those that there are.
        """
        if self.sampler not in SAMPLERS:
            raise UserError(f"hydra.sweeper.sampler={self.sampler}: choose one of {', '.join(SAMPLERS)}")
        self.together = int(OmegaConf.select(config, "hydra.launcher.n_jobs", default=1))
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = Path(config.hydra.sweep.dir).absolute()
        if table := getattr(self.launcher, "table", None):
            table.rank_by(list(self.objectives))
        if OmegaConf.select(config, "hydra.launcher.prune_after") and self.objectives != OWN:
            raise UserError(
                "hydra.launcher.prune_after ends jobs by their speedup: leave it or hydra.sweeper.objectives out"
            )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are `n_trials`; failed ones count, as they would fail again.

        Raises:
            UserError: nothing is to be searched, or no trial has completed.
        """
        import optuna

        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = {each.key_or_group: each for each in OverridesParser.create().parse_overrides(given)}
        space = {key: _distribution(each) for key, each in parsed.items() if each.is_sweep_override()}
        fixed = [str(each.input_line) for each in parsed.values() if not each.is_sweep_override()]
        if not space:
            raise UserError("hydra/sweeper=optuna needs something to search, e.g. drafter.window='range(2,16)'")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = self._study()
        self.launcher.shows = False  # once, at the end, and not after every batch
        while (done := len(_ended(study))) < self.n_trials:
            trials = [study.ask(space) for _ in range(min(self.together, self.n_trials - done))]
            batch = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            for trial, job in zip(trials, self.launcher.launch(batch, initial_job_idx=done), strict=True):
                self._tell(study, trial, job)
        if show := getattr(self.launcher, "show", None):
            show()
        best = study.best_trials
        if not best:
            raise UserError(f"none of {self.n_trials} trials has completed: see sweep.csv in {self.folder}")
        for trial in best:
            values = ", ".join(f"{name} {value:.4g}" for name, value in zip(self.objectives, trial.values, strict=True))
            log.info(f"best: {values} with {' '.join(f'{key}={value}' for key, value in trial.params.items())}")

    def _study(self) -> optuna.Study:
        """Return the study of the sweep's folder. Trials that were running when it was killed are tried again.

        Raises:
            UserError: it has other objectives.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        samplers = {
            "tpe": optuna.samplers.TPESampler,
            "nsga2": optuna.samplers.NSGAIISampler,
            "random": optuna.samplers.RandomSampler,
        }
        storage = JournalStorage(JournalFileBackend(str(self.folder / JOURNAL)))
        known = {summary.study_name: summary.n_trials for summary in optuna.get_all_study_summaries(storage)}
        study = optuna.create_study(
            storage=storage,
            study_name=STUDY,
            directions=list(self.objectives.values()),
            load_if_exists=True,
            # A sampler that began with the same seed would propose again what it has proposed before.
            sampler=samplers[self.sampler](seed=self.seed + known.get(STUDY, 0)),
        )
        if [direction.name.lower() for direction in study.directions] != list(self.objectives.values()):
            raise UserError(f"the sweep in {self.folder} has other objectives: use another hydra.sweep.dir")
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
        return study

    def _tell(self, study: optuna.Study, trial: optuna.Trial, job: JobReturn) -> None:
        """Tell the study a trial's values, or that it has failed."""
        import optuna

        result: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            assert job.hydra_cfg is not None
            path = Path(job.hydra_cfg.hydra.runtime.output_dir) / "result.json"
            result = json.loads(path.read_text(encoding="utf-8"))
        values = [dig(result, name.split("/")) for name in self.objectives]
        if self._is_pruned(job):
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif job.status == JobStatus.COMPLETED and all(isinstance(value, int | float) for value in values):
            study.tell(trial, values)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _is_pruned(self, job: JobReturn) -> bool:
        """Return whether the launcher has ended a job because it could not become the best."""
        index, name = getattr(self.launcher, "index", None), getattr(job, "name", "")
        return index is not None and name in index.jobs and index.jobs[name].status == PRUNED


def _ended(study: optuna.Study) -> Sequence[Any]:
    """Return the trials that count: those that ended, without those that a kill has interrupted."""
    again = {trial.user_attrs["again"] for trial in study.trials if "again" in trial.user_attrs}
    return [trial for trial in study.trials if trial.state.is_finished() and trial.number not in again]


def _distribution(override: Override) -> optuna.distributions.BaseDistribution:
    """Return the values that an override stands for.

    Raises:
        UserError: it is of a kind that cannot be searched.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution([_plain(each) for each in value.list])
    if isinstance(value, RangeSweep):
        assert value.start is not None and value.stop is not None
        last = value.stop - value.step  # as in Python, the end is not included
        if all(isinstance(each, int) for each in (value.start, value.step, last)):
            return IntDistribution(int(value.start), int(last), step=int(value.step))
        return FloatDistribution(value.start, last, step=value.step)
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log="log" in value.tags)
        return FloatDistribution(float(value.start), float(value.end), log="log" in value.tags)
    raise UserError(f"{override.input_line}: Optuna searches lists, range(…) and interval(…) only")


def _plain(value: Any) -> Any:
    """Return a choice as Optuna keeps it: a number or a flag as it is, anything else as it is typed."""
    return value if isinstance(value, bool | int | float) else Override._get_value_element_as_str(value)
