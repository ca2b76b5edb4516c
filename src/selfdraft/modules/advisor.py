"""Find the fastest drafter: record texts, predict all candidates, try those that cannot be predicted, confirm the best.

1. `record`: plain decoding answers the prompts once.
2. `predict`: replays on the recorded texts (`modules/forecast.py`).
3. `attempt`: candidates without a prediction decode a few of the prompts, in turn with plain decoding.
4. `confirm`: the best ones by prediction or trial decode all prompts, in turn with plain decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.data.prompts import Prompt
from selfdraft.decoding.loop import Decoder
from selfdraft.drafters.specs import Spec, spec_of
from selfdraft.models.loading.chat import Chat
from selfdraft.models.measuring.memory import give_back
from selfdraft.modules.bench import BASELINE, Bench
from selfdraft.modules.first_turns import Asked, compare_first_turns
from selfdraft.modules.forecast import Forecast, Forecaster
from selfdraft.tracking.files.cost_cache import Watch
from selfdraft.tracking.files.records import Line
from selfdraft.tracking.numbers.comparison import summarize_comparison, wrong_texts
from selfdraft.tracking.numbers.lines import CONTENDERS

Tell = Callable[[str, int, int], object]
"""``tell(what, done, total)``: called as work goes on."""


@dataclass
class Advisor:
    """Compares the candidates for one model on one machine.

    Attributes:
        bench: with plain decoding; other decoders are made when they are needed.
        candidates: drafters by their line.
        asked: the prompts. labels: of the results, for `summarize_comparison`.
        forecasts: by candidate. A path's forecast has another name, with the options that are best.
        tried: by candidate, its summary on a few prompts. left_out: by candidate, why it cannot be used here.
        lines: of all comparisons, in the form of task=compare.
        crowded: whether other programs kept the machine busy during one of them, so that speedups may be far off.
        result: the summary of the confirmation.
    """

    bench: Bench
    candidates: Mapping[str, Spec]
    asked: Sequence[Asked]
    labels: Mapping[str, Any]
    tell: Tell = lambda what, done, total: None
    forecaster: Forecaster | None = None
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    tried: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    crowded: bool = False
    result: dict[str, Any] = field(default_factory=dict)

    def record(self) -> Forecaster:
        """Record the answers of plain decoding, which must be greedy."""
        self.bench.warm_up()
        tell = partial(self.tell, "recorded")
        self.forecaster = Forecaster(self.bench.baseline, self.asked, tell=lambda done: tell(done, len(self.asked)))
        return self.forecaster

    def predict(self) -> None:
        """Predict the candidates that can be predicted, on what was recorded."""
        assert self.forecaster is not None, "`record` comes first"
        asked = {name: spec for name, spec in self.candidates.items() if name != BASELINE}
        for number, (name, spec) in enumerate(asked.items(), start=1):
            try:
                forecast = self.forecaster.of(name, spec)
            except UserError as reason:
                self.left_out[name] = str(reason)
            else:
                if forecast is not None:
                    self.forecasts[name] = forecast
            self.tell("predicted", number, len(asked))
            give_back()

    def attempt(self, count: int) -> None:
        """Let the candidates without a prediction decode the first `count` prompts."""
        left = [name for name in self.candidates if name not in (BASELINE, *self.forecasts, *self.left_out)]
        decoders = self._decoders({name: self.candidates[name] for name in left})
        if decoders:
            found = self._compare(decoders, self.asked[:count], "tried")
            self.tried = {name: found[CONTENDERS][name] for name in decoders}

    def best(self, count: int) -> dict[str, Spec]:
        """Return the `count` candidates with the highest predicted or tried speedup, by their line.

        Raises:
            UserError: no candidate can be used with this model.
        """
        speeds = {forecast.name: forecast.speedup for forecast in self.forecasts.values()}
        speeds |= {name: found["speedup_total"] or 0.0 for name, found in self.tried.items()}
        if not speeds:
            name, reason = next(iter(self.left_out.items()), ("", "there are none"))
            raise UserError(f"no candidate can be used here: {name}: {reason}")
        first = sorted(speeds, key=lambda name: -speeds[name])[:count]
        return {name: self.candidates[name] if name in self.candidates else spec_of(name) for name in first}

    def confirm(self, specs: Mapping[str, Spec], count: int | None = None) -> dict[str, Any]:
        """Let drafters decode all prompts, or the first `count`, and return the summary.

        Raises:
            UserError: none of them can be used with this model.
        """
        decoders = self._decoders(specs)
        if not decoders:
            name, reason = next(iter(self.left_out.items()))
            raise UserError(f"no candidate can be used here: {name}: {reason}")
        self.result = self._compare(decoders, self.asked[:count], "confirmed")
        return self.result

    def wrong(self) -> list[str]:
        """Name every wrong text of all comparisons, with its prompt and the reason."""
        return [
            wrong
            for line in self.lines
            for wrong in wrong_texts([line], [name for name in line[CONTENDERS] if name != BASELINE] + [BASELINE])
        ]

    def errors(self) -> dict[str, float]:
        """Return by how much predictions of confirmed drafters were too high, as shares of the confirmed speedup."""
        predicted = {forecast.name: forecast.speedup for forecast in self.forecasts.values()}
        return {
            name: predicted[name] / found["speedup_total"] - 1
            for name, found in self.result.get(CONTENDERS, {}).items()
            if name in predicted and found["speedup_total"]
        }

    def _decoders(self, specs: Mapping[str, Spec]) -> dict[str, Decoder]:
        """Make decoders; drafters that do not fit the model are left out."""
        plain, decoders = self.bench.baseline, {}
        for name, spec in specs.items():
            try:
                drafter = spec.drafter(plain.target, plain.drafter.costs)
            except UserError as reason:
                self.left_out[name] = str(reason)
                continue
            decoders[name] = Decoder(plain.target, drafter, plain.stopping, rule=plain.rule, memory=self.bench.memory)
        return decoders

    def _compare(self, decoders: Mapping[str, Decoder], asked: Sequence[Asked], what: str) -> dict[str, Any]:
        bench = replace(self.bench, decoders={BASELINE: self.bench.baseline, **decoders})
        watch = Watch()
        lines = compare_first_turns(bench, asked, tell=lambda done: self.tell(what, done, len(asked)))
        self.crowded |= watch.crowded
        self.lines += lines
        result = summarize_comparison(lines, **self.labels)
        for name, startup in bench.startup().items():
            result[CONTENDERS][name]["startup"] = startup
        return result


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Return `count` prompts, the families of which take turns, so that the first ones are of all kinds."""
    by_family: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_family.setdefault(prompt.family, []).append(prompt)
    longest = max(map(len, by_family.values()), default=0)
    return [family[i] for i in range(longest) for family in by_family.values() if i < len(family)][:count]


def asked_by(chat: Chat, prompts: Sequence[Prompt]) -> list[Asked]:
    """Return the first turns of prompts as token ids."""
    return [Asked(prompt.id, prompt.family, chat.encode(prompt.beginning)) for prompt in prompts]
