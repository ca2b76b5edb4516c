"""What is recorded of one decoded request: its output, counts, times, and every step for the viewer.

Counts and seconds are only summed here. Ratios are formed once, from the sums over all prompts (see
`tracking.numbers.summary`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from selfdraft.core.counts import Counts
from selfdraft.drafters.base import Step

PHASES = ("prefill", "draft", "verify", "commit", "other")


class PhaseClock:
    """Seconds spent in each phase. `other` is the time of a step outside its named phases."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of the block to `phase`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begin

    @contextmanager
    def rest(self, phase: str) -> Iterator[None]:
        """Add to `phase` the time of the block outside the phases that are clocked within it."""
        before, begin = sum(self.seconds.values()), time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - begin - (sum(self.seconds.values()) - before)

    def add(self, other: PhaseClock, share: float = 1.0) -> None:
        """Add a share of another clock's times."""
        for phase, seconds in other.seconds.items():
            self.seconds[phase] += share * seconds

    @property
    def decode_s(self) -> float:
        """Return the seconds of all phases but the prefill."""
        return sum(self.seconds.values()) - self.seconds["prefill"]


@dataclass
class Generation:
    """One answer, and the record of how it was decoded.

    Attributes:
        output: emitted token ids, up to and including the end of sequence.
        clock: time by phase. In a batch, a step's time is divided evenly among its requests, so sums over requests are
            elapsed time.
        latency_s: seconds from the request's arrival in the batch to its last token: its own prefill, prefills of
            others meanwhile, and whole steps.
        first_token_s: seconds from the request's arrival to the tokens of its first step.
        step_s: seconds of each step; in a batch the whole step, for which all its requests wait.
        ended: why the answer ended: `eos`, `length`, `positions` (the model has no more), `stop string` or `criterion`;
            empty while it goes on.
        steps: per step `[tokens, parents or None for a chain, accepted nodes, bonus, source, probes or None]`, for the
            viewer. The bonus is None if the answer ended within the accepted tokens; nodes and probes are indices.
            If the nodes have several sources, the source of each node follows.
        diagnostics: the drafter's own histograms, once the answer has ended.
        iterates: see `Drafter.iterates`; once the answer has ended.
    """

    prompt: list[int]
    output: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    clock: PhaseClock = field(default_factory=PhaseClock)
    latency_s: float = 0.0
    first_token_s: float | None = None
    step_s: list[float] = field(default_factory=list)
    ended: str = ""
    steps: list[list] = field(default_factory=list)
    diagnostics: dict[str, list[int]] = field(default_factory=dict)
    iterates: list[tuple[int, int, list[int]]] = field(default_factory=list)

    @property
    def decode_s(self) -> float:
        """Return the seconds of decoding, without the prefill."""
        return self.clock.decode_s

    @property
    def elapsed_s(self) -> float:
        """Return the seconds of all phases: in a batch, this request's share of the time that passed."""
        return sum(self.clock.seconds.values())

    def add(self, step: Step) -> None:
        """Count one step."""
        tree = step.draft.tree
        self.output += step.emitted
        self.counts.new_tokens += len(step.emitted)
        self.counts.target_forwards += 1 + step.draft.target_forwards
        accepted = min(len(step.nodes), len(step.emitted))  # a stop within the accepted tokens emits fewer
        self.counts.record_draft(tree.offered_by_depth(), accepted)
        parents = None if tree.is_chain else tree.parent_list
        bonus = step.emitted[-1] if len(step.emitted) > len(step.nodes) else None
        probes = [node for node, may in enumerate(tree.is_candidate.tolist()) if not may] or None
        nodes = list(step.nodes[:accepted])
        record = [tree.tokens.tolist(), parents, nodes, bonus, step.draft.source, probes]
        several = len(set(step.draft.sources)) > 1
        self.steps.append([*record, list(step.draft.sources)] if several else record)
