"""What one decoded request leaves behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from selfdraft.core.counts import Counts
from selfdraft.drafters.base import Step

PHASES = ("prefill", "draft", "verify", "commit", "other")


class PhaseClock:
    """Seconds spent in each phase. `other` is what a step took beyond its named phases."""

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
        """Add to `phase` what the block takes beyond the phases named within it."""
        before, begin = sum(self.seconds.values()), time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - begin - (sum(self.seconds.values()) - before)

    def add(self, other: PhaseClock, share: float = 1.0) -> None:
        """Add a share of another clock's times."""
        for phase, seconds in other.seconds.items():
            self.seconds[phase] += share * seconds

    @property
    def decode_s(self) -> float:
        """Everything but the prefill."""
        return sum(self.seconds.values()) - self.seconds["prefill"]


@dataclass
class Generation:
    """One answer and how it came about.

    Attributes:
        output: emitted ids, up to and including the end of sequence.
        clock: time by phase. In a batch a step's time is shared out evenly among its requests, so that sums over
            requests are the time that passed.
        latency_s: what the request itself waited for, from its arrival in the batch to its last token: its own prefill,
            those of others meanwhile, and whole steps.
        ended: why: `eos`, `length`, `positions` (the model has no more), `stop string` or `criterion`; empty while it
            goes on.
        steps: per step `[tokens, parents or None for a chain, accepted path, bonus, source, probes or None]`: what a
            viewer needs. The bonus is None where the answer ended within the accepted tokens; probes are node indices.
        diagnostics: the drafter's own histograms, once the answer has ended.
    """

    prompt: list[int]
    output: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    clock: PhaseClock = field(default_factory=PhaseClock)
    latency_s: float = 0.0
    ended: str = ""
    steps: list[list] = field(default_factory=list)
    diagnostics: dict[str, list[int]] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Count one step."""
        tree = step.draft.tree
        self.output += step.emitted
        self.counts.new_tokens += len(step.emitted)
        self.counts.target_forwards += 1 + step.draft.target_forwards
        accepted = min(len(step.path), len(step.emitted))  # a stop inside the accepted run emits fewer
        self.counts.record_draft(tree.offered_by_depth(), accepted)
        parents = None if tree.is_chain else tree.parents.tolist()
        bonus = step.emitted[-1] if len(step.emitted) > len(step.path) else None
        probes = (~tree.is_candidate).nonzero().flatten().tolist() or None
        path = list(step.path[:accepted])
        self.steps.append([tree.tokens.tolist(), parents, path, bonus, step.draft.source, probes])
