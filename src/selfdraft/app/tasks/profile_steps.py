"""The part of task=profile that says where a decoding step goes, and how far each engine is from the memory's floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from selfdraft.app.options.schemas import Config
from selfdraft.core.costs import CostCurve, Costs
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context, Draft, Drafter, Step
from selfdraft.drafters.presets import drafter_for
from selfdraft.models.engines.choice import EAGER, use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import LoadedModel
from selfdraft.models.measuring.breakdown import StepParts, measure_steps
from selfdraft.models.measuring.floor import bandwidth, traffic
from selfdraft.models.measuring.profiling import costs_on

TEXT = (
    "Repeat this sentence, and then explain it: a draft is accepted where the model would have written the same "
    "tokens, and a draft that is not accepted costs only time."
)
NEW_TOKENS = 24  # of the answer during which the drafter is timed

Tell = Callable[[str], object]
Note = Callable[[str, StepParts], object]


class Timed(Drafter):
    """Passes every call on to a drafter.

    Attributes:
        seconds: per step, how long `propose_batch` and `observe` took.
    """

    def __init__(self, inner: Drafter) -> None:
        super().__init__(inner.target, inner.config, inner.costs)
        self.inner, self.best = inner, inner.best
        self.seconds: list[float] = []

    def start(self, context: Context) -> None:
        """Begin a request."""
        self.inner.start(context)

    def propose(self, context: Context) -> Draft:
        """Return the inner drafter's draft."""
        return self.propose_batch([context])[0]

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """Return the inner drafter's drafts, and note the time."""
        begun = time.perf_counter()
        drafts = self.inner.propose_batch(contexts)
        self.seconds.append(time.perf_counter() - begun)
        return drafts

    def observe(self, context: Context, step: Step) -> None:
        """Let the inner drafter observe, and add the time to the step's."""
        begun = time.perf_counter()
        self.inner.observe(context, step)
        self.seconds[-1] += time.perf_counter() - begun

    def explore(self, context: Context) -> None:
        """Let the inner drafter explore; that is no part of a step."""
        self.inner.explore(context)


def drafter_seconds(target: Target, config: Config, loaded: LoadedModel, costs: Costs) -> float:
    """Return how long the configured drafter proposes and observes: the median over the steps of a short answer.

    Raises:
        UserError: the drafter's options do not fit the model.
    """
    timed = Timed(drafter_for(target, config.drafter, costs))
    prompt = Chat(loaded.tokenizer).encode([("user", TEXT)])
    room = target.max_positions - 1
    new = min(NEW_TOKENS, max(room // 2, 1))
    Decoder(target, timed, Stopping(frozenset(), new)).decode(prompt[-max(room - new, 1) :])
    return median(timed.seconds)


def compiled_target(config: Config, loaded: LoadedModel, tell: Tell) -> dict[str, Target]:
    """Return a second target whose layers are compiled, by the line that names its engine; empty without one.

    Raises:
        UserError: model.engine=compiled is asked for and not possible here.
    """
    if config.model.engine == EAGER:
        return {}
    target = Target(loaded.model, packed=config.model.packed, attention=config.model.attention)
    line = use_engine(target, config.model.engine, tell=tell, weights=config.model.weights)
    return {line: target} if target.compiled else {}


def measure_engines(
    config: Config,
    loaded: LoadedModel,
    targets: Mapping[str, Target],
    context: int,
    rounds: int,
    tell: Tell,
    note: Note,
) -> dict[str, Any]:
    """Measure the steps of targets, each given by the line that names its engine.

    Args:
        tell: called with a line before or after everything that takes seconds.
        note: called with the engine's name and every step, as soon as that is measured.

    Returns:
        For profile.json; see `print_steps`.

    Raises:
        UserError: the drafter's options do not fit the model.
    """
    engines: list[dict[str, Any]] = []
    speed = 0.0
    for line, target in targets.items():
        engines.append(measure_engine(config, loaded, target, line, context, rounds, tell, note))
        # Measured again after each engine, because other work on the machine can only make it look slower.
        tell("measuring the memory's bandwidth")
        speed = max(speed, bandwidth(target.device))
    for engine in engines:
        engine["floor_s"] = sum(engine["bytes"].values()) / speed
        engine["over_floor"] = engine["steps"][0]["forward_s"] / engine["floor_s"]
    return {"drafter": config.drafter.label, "bandwidth": speed, "engines": engines}


def measure_engine(
    config: Config,
    loaded: LoadedModel,
    target: Target,
    line: str,
    context: int,
    rounds: int,
    tell: Tell,
    note: Note,
) -> dict[str, Any]:
    """Measure the steps of one target, whose engine is named by `line`, and count the bytes that it reads."""
    name = line.partition(" ")[0]
    steps: list[StepParts] = []
    for step in measure_steps(target, context=context, rounds=rounds):
        steps.append(step)
        note(name, step)
        tell(f"{name}: measured the parts of a step of {step.tokens} token{'s' * (step.tokens > 1)}")
    read = traffic(target, target.cache.lengths[0])
    tell(f"{name}: timing the drafter {config.drafter.label} on a short text")
    curve = None
    if len(steps) > 1:
        curve = CostCurve.measured([step.tokens for step in steps], [step.forward_s for step in steps])
    drafting = drafter_seconds(target, config, loaded, costs_on(target, curve))
    return {"engine": line, "bytes": asdict(read), "steps": [asdict(step.with_drafter(drafting)) for step in steps]}
