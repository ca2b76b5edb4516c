"""The search methods of a calibration: which skip sets it tries. One Optuna study keeps them, so a run can be resumed.

* `random`: sets of random size. `bayes`: Optuna's tree-structured Parzen estimator. `evolution`: its NSGA-II, here with
  a single objective. They choose a size and a priority for every sublayer; those of highest priority are skipped.
* `importance`: first each sublayer by itself, then the least harmful ones together, one more each time.
* `dp`: CLaSp's dynamic programme (arXiv 2505.24196): the whole layers that change hidden states least, one more each
  time.

The first and the last layer are always kept, as SWIFT keeps them. Every candidate has an index; the processes divide
the indices among them and share the study through its journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.tracking.files.atomic import cut_torn_tail

METHODS = ("importance", "random", "bayes", "evolution", "dp")
JOURNAL = "study.journal"
POPULATION = 16  # candidates per generation of `evolution`
RESEED = 1009  # distance between the seeds of processes and of restarts, so that none repeats another's draws


@dataclass(frozen=True)
class Candidate:
    """A skip set to score. `trial` is Optuna's; None where the index is enough to determine the skip set."""

    index: int
    skip: SkipSet
    trial: Trial | None = None


class Search:
    """A study in `folder`, made by the first process and shared by the others."""

    def __init__(
        self,
        folder: Path,
        method: str,
        layers: int,
        sizes: tuple[int, int],
        trials: int,
        seed: int,
        rank: int = 0,
        most_similar: Callable[[int], SkipSet] | None = None,
    ) -> None:
        """Start a study, or resume the one in `folder`.

        Args:
            method: one of `METHODS`.
            layers: number of the model's layers. sizes: the fewest and the most sublayers to skip.
            most_similar: returns the given number of whole layers that change hidden states least; `dp` needs it.

        Raises:
            UserError: no sublayer of the model may be skipped, or the method cannot work with these trials or sizes.
        """
        self.method, self.sizes, self.most_similar = method, sizes, most_similar
        self.sublayers = [(kind, i) for kind in ("attention", "mlp") for i in range(1, layers - 1)]
        if sizes[1] < 1:
            raise UserError(f"there is nothing to skip: of {layers} layers the first and the last are kept")
        self.total = trials
        if method == "importance":
            singles, together = len(self.sublayers), 1 + sizes[1] - sizes[0]
            if trials <= singles:
                raise UserError(
                    f"calibrate.method=importance tries {singles} sublayers one by one first: calibrate.trials="
                    f"{trials} must be at least {singles + 1}"
                )
            self.total = min(trials, singles + together)
        if method == "dp":
            self.total = min(trials, 1 + sizes[1] // 2 - max(sizes[0] // 2, 1))
            if self.total < 1:
                raise UserError(
                    "calibrate.method=dp skips whole layers, two sublayers at least: raise drafter.path.sparsity"
                )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if rank == 0:  # no other process is at work yet; Optuna would append to an unfinished line of a killed run
            cut_torn_tail(folder / JOURNAL)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        self.study = optuna.create_study(
            storage=storage, study_name="calibrate", direction="maximize", load_if_exists=True
        )
        if rank == 0:  # trials that a killed run left unfinished
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)
        seed += RESEED * (len(self.study.get_trials(deepcopy=False)) + rank)
        samplers = {
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "bayes": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
            "evolution": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION),
        }
        if method in samplers:
            self.study.sampler = samplers[method]()

    def remaining(self) -> list[int]:
        """Return the indices that no earlier run has finished."""
        done = {line["index"] for line in self.history()}
        return [index for index in range(self.total) if index not in done]

    def candidate(self, index: int) -> Candidate:
        """Return the candidate of this index."""
        if self.method == "importance":
            return Candidate(index, self._by_importance(index))
        if self.method == "dp":
            assert self.most_similar is not None
            return Candidate(index, self.most_similar(max(self.sizes[0] // 2, 1) + index))
        trial = self.study.ask()
        size = trial.suggest_int("size", *self.sizes)
        priority = {s: trial.suggest_float(f"{s[0]} {s[1]}", 0.0, 1.0) for s in self.sublayers}
        return Candidate(index, _skipping(sorted(priority, key=priority.__getitem__, reverse=True)[:size]), trial)

    def tell(self, candidate: Candidate, value: float, facts: Mapping[str, Any]) -> None:
        """Store a candidate's score and the facts about it."""
        attributes = {
            "index": candidate.index,
            "skip_attention": sorted(candidate.skip.attention),
            "skip_mlp": sorted(candidate.skip.mlp),
            **facts,
        }
        if candidate.trial is None:
            self.study.add_trial(optuna.trial.create_trial(value=value, user_attrs=attributes))
            return
        for name, fact in attributes.items():
            candidate.trial.set_user_attr(name, fact)
        self.study.tell(candidate.trial, value)

    def history(self) -> list[dict[str, Any]]:
        """Return all scored candidates by index: `value`, the skip set and the facts given to `tell`."""
        scored = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        lines = [{"value": trial.value, **trial.user_attrs} for trial in scored]
        return sorted(lines, key=lambda line: line["index"])

    def _by_importance(self, index: int) -> SkipSet:
        singles = len(self.sublayers)
        if index < singles:
            return _skipping([self.sublayers[index]])
        while len(scored := [line for line in self.history() if line["index"] < singles]) < singles:
            time.sleep(0.05)  # other processes are still scoring theirs
        harmless = sorted(scored, key=lambda line: line["value"], reverse=True)
        size = self.sizes[0] + index - singles
        return _skipping([self.sublayers[line["index"]] for line in harmless[:size]])


def _skipping(sublayers: list[tuple[str, int]]) -> SkipSet:
    return SkipSet(*(frozenset(i for kind, i in sublayers if kind == wanted) for wanted in ("attention", "mlp")))
