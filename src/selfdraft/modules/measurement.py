"""All runs of one prompt, and the lines of prompts.jsonl that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from selfdraft.core.certificate import Certificate
from selfdraft.decoding.record import Generation
from selfdraft.drafters.guard import PAUSED
from selfdraft.models.reference.stock import StockGeneration

DRAFTER, BASELINE = "drafter", "none"


@dataclass
class Measurement:
    """All runs of one prompt.

    Attributes:
        runs: by contender, one run per repeat.
        repeats: for each repeat, the order and each contender's decode seconds.
        certificates: by contender. Of ours, the worst one over the repeats; of a reference, the one that compares its
            output with our baseline's. An evaluation's baseline, with which all are compared, has none.
        joules: by contender, those of each run; None where they cannot be read.
        energy: `sources`, the parts of the machine whose joules were counted, and `not_readable`, why others were not.
    """

    runs: dict[str, list] = field(default_factory=dict)
    repeats: list[dict] = field(default_factory=list)
    certificates: dict[str, Certificate] = field(default_factory=dict)
    joules: dict[str, list[float | None]] = field(default_factory=dict)
    energy: dict[str, Any] = field(default_factory=dict)

    def add(self, order: list[str], runs: dict[str, tuple[Generation | StockGeneration, float | None]]) -> None:
        """Add one repeat: each contender's run, and the joules that it took."""
        for name, (run, joules) in runs.items():
            self.runs.setdefault(name, []).append(run)
            self.joules.setdefault(name, []).append(joules)
        self.repeats.append({"order": order, "decode_s": {name: runs[name][0].decode_s for name in order}})

    @property
    def baseline(self) -> Generation:
        """The baseline's first run (counts and output are the same in every repeat)."""
        return self.runs[BASELINE][0]

    def line(self) -> dict:
        """Return the measured part of a line of an evaluation's prompts.jsonl. Seconds are medians over the repeats.

        In a batch, the seconds of a phase are this prompt's share of them; only a latency is wall time.
        """
        drafter, baseline = self.runs[DRAFTER][0], self.baseline
        return {
            "prompt_ids": drafter.prompt,
            "output_ids": drafter.output,
            **self._of_ours(DRAFTER),
            "baseline_decode_s": median(run.decode_s for run in self.runs[BASELINE]),
            "baseline_latency_s": median(run.latency_s for run in self.runs[BASELINE]),
            "baseline_new_tokens": baseline.counts.new_tokens,
            **self._joules(BASELINE, "baseline_joules"),
            "energy": self.energy,
            "repeats": self.repeats,
            "references": {
                name: {
                    "new_tokens": runs[0].decoded,
                    "decode_s": median(run.decode_s for run in runs),
                    "same_as_baseline": runs[0].output == baseline.output,
                    "lossless": self.certificates[name].to_dict(),
                }
                for name, runs in self.runs.items()
                if isinstance(runs[0], StockGeneration)
            },
            # Written only if they differ, so that the file does not hold a text twice.
            **({} if drafter.output == baseline.output else {"baseline_output_ids": baseline.output}),
        }

    def comparison(self) -> dict:
        """Return the measured part of a line of a comparison's prompts.jsonl; see `line` for the seconds.

        It has the baseline's text, and by contender what was measured, with the text where that differs.
        """
        return {
            "prompt_ids": self.baseline.prompt,
            "output_ids": self.baseline.output,
            "energy": self.energy,
            "repeats": self.repeats,
            "contenders": {name: self._of(name) for name in self.runs},
        }

    def _of(self, name: str) -> dict:
        first = self.runs[name][0]
        part = self._of_reference(name) if isinstance(first, StockGeneration) else self._of_ours(name)
        return part | ({} if first.output == self.baseline.output else {"output_ids": first.output})

    def _joules(self, name: str, key: str = "joules") -> dict[str, float]:
        """Return a contender's joules under `key`, the median over the repeats; nothing if one was not measured."""
        joules = _median(self.joules[name])
        return {} if joules is None else {key: joules}

    def _of_ours(self, name: str) -> dict:
        """Return what was measured of one of our decoders."""
        runs: list[Generation] = self.runs[name]
        first, counts = runs[0], runs[0].counts
        clocks = [run.clock.seconds for run in runs]
        return {
            "new_tokens": counts.new_tokens,
            "ended": first.ended,
            "target_forwards": counts.target_forwards,
            "prefill_s": median(clock["prefill"] for clock in clocks),
            "decode_s": median(run.decode_s for run in runs),
            "latency_s": median(run.latency_s for run in runs),
            **self._joules(name),
            "first_token_s": _median([run.first_token_s for run in runs]),
            "step_s": [round(seconds, 6) for seconds in first.step_s],
            "lossless": self.certificates.get(name, Certificate("exact")).to_dict(),
            "acceptance_by_depth": counts.acceptance_by_depth(),
            "phases_s": {phase: median(clock[phase] for clock in clocks) for phase in clocks[0]},
            "steps": first.steps,
            "diagnostics": first.diagnostics,
            **({"iterates": first.iterates} if first.iterates else {}),
            "stood_down": sum(step[4] == PAUSED for step in first.steps),
        }

    def _of_reference(self, name: str) -> dict:
        """Return what was measured of a decoder outside SelfDraft; nobody counts its forwards."""
        runs: list[StockGeneration] = self.runs[name]
        return {
            "new_tokens": runs[0].decoded,
            "target_forwards": 0,
            "decode_s": median(run.decode_s for run in runs),
            "latency_s": median(run.latency_s for run in runs),
            **self._joules(name),
            "lossless": self.certificates[name].to_dict(),
            "acceptance_by_depth": [],
            "phases_s": {},
            **({"failed": runs[0].failed} if runs[0].failed else {}),
        }


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median; None if there is a value that was not measured."""
    known = [value for value in values if value is not None]
    return median(known) if known and len(known) == len(values) else None
