"""The decoders that an evaluation compares: the drafter, our autoregressive baseline, references outside SelfDraft."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from selfdraft.core.certificate import Certificate
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.record import Generation
from selfdraft.models.loading.chat import Chat
from selfdraft.models.measuring.energy import EnergyMeter, shared
from selfdraft.models.measuring.memory import PeakMemory
from selfdraft.models.reference.stock import SAME_VALUES, UNKNOWN_VALUES, StockGeneration
from selfdraft.modules.measurement import BASELINE, DRAFTER, Measurement

WARM_UP = [1, 2, 3, 4, 5, 6, 7, 8]  # any token ids
SEVERITY = ("exact", "sampled", "tie", "mismatch")


class Reference(Protocol):
    """A decoder outside SelfDraft.

    Attributes:
        judged: whether its texts are compared with ours, which takes the same weights.
        weights: the class of its weights; see `stock.SAME_VALUES`.
        load_s: seconds in which it loaded them; None if it shares those of the target.
        peak_memory_mb: of its own process; None if it has none, or does not know.
    """

    judged: bool
    weights: str
    load_s: float | None
    peak_memory_mb: float | None

    def decode(self, prompt: Sequence[int], /) -> StockGeneration:
        """Answer one prompt."""
        ...


@dataclass(frozen=True)
class Bench:
    """The decoders that answer the same prompts (the "contenders"), with the certifier and the record of peak memory.

    Attributes:
        decoders: ours, by name, all of one target and batch size; `BASELINE` is always among them, and `DRAFTER` where
            a run has one drafter.
        references: by name, decoders outside SelfDraft that are timed too, prompt by prompt.
        arbiters: by reference, the certifier of the model with its weights, or a line that says why there is none.
        memory: records the peak memory of loading, prefilling, decoding and certifying.
        energy: measures the joules of every decode, where this machine lets them be read.
        fingerprint: the model's fingerprint. engine: a line that says how the target's layers are run.
        load_s, compile_s: seconds in which the model was loaded, and in which its layers were compiled or packed.
        prepare_s: by contender of ours, seconds in which its drafter was made and first used, with graphs of its own.
    """

    chat: Chat
    decoders: dict[str, Decoder]
    certifier: Certifier
    references: Mapping[str, Reference] = field(default_factory=dict)
    arbiters: Mapping[str, Certifier | str] = field(default_factory=dict)
    memory: PeakMemory = field(default_factory=lambda: PeakMemory(torch.device("cpu")))
    energy: EnergyMeter = field(default_factory=EnergyMeter)
    fingerprint: str = ""
    engine: str = "eager"
    load_s: float = 0.0
    compile_s: float = 0.0
    prepare_s: dict[str, float] = field(default_factory=dict)

    @property
    def drafter(self) -> Decoder:
        """The decoder with the run's drafter."""
        return self.decoders[DRAFTER]

    @property
    def baseline(self) -> Decoder:
        """Plain decoding."""
        return self.decoders[BASELINE]

    def order(self, position: int) -> list[str]:
        """Return the contenders' names, rotated by `position`, so that none is always the first to run."""
        names = [*self.decoders, *self.references]
        shift = position % len(names)
        return names[shift:] + names[:shift]

    def decode(self, name: str, requests: Sequence[Request]) -> list[Generation] | list[StockGeneration]:
        """Decode all requests with one contender: references one request at a time, ours in batches."""
        with self.memory.of(name):
            if name in self.references:
                return [self.references[name].decode(request.prompt) for request in requests]
            return self.decoders[name].answer(requests)

    def startup(self) -> dict[str, dict[str, Any]]:
        """Return, by contender, the class of its weights, its peak memory, and the seconds before its first answer."""
        ours = {"weights": SAME_VALUES, "load_s": self.load_s, "compile_s": self.compile_s}
        found: dict[str, dict[str, Any]] = {
            name: {**ours, "prepare_s": self.prepare_s.get(name, 0.0)} for name in self.decoders
        }
        for name, other in self.references.items():
            loaded = self.load_s if other.load_s is None else other.load_s
            found[name] = {"weights": other.weights, "load_s": loaded, "compile_s": 0.0, "prepare_s": 0.0}
        return {
            name: {**each, "peak_memory_mb": self._peak_memory_mb(name), "not_certified": self.not_certified(name)}
            for name, each in found.items()
        }

    def _peak_memory_mb(self, name: str) -> float | None:
        other = self.references.get(name)
        if other is not None and other.load_s is not None:  # it has a process of its own
            return other.peak_memory_mb
        return self.memory.by_contender.get(name)

    def warm_up(self) -> None:
        """Decode a short prompt with every contender, unmeasured: a process allocates memory in its first forwards."""
        for name in self.order(0):
            begun = time.perf_counter()
            self.decode(name, [Request(WARM_UP, key="warm-up") for _ in range(self.baseline.batch_size)])
            if name in self.decoders:
                self.prepare_s[name] = self.prepare_s.get(name, 0.0) + time.perf_counter() - begun

    def measure(self, requests: Sequence[Request], *, repeats: int, position: int) -> list[Measurement]:
        """Decode the requests `repeats` times with every contender, interleaved, in rotating order.

        Returns:
            One measurement per request.
        """
        measured = [Measurement() for _ in requests]
        for repeat in range(repeats):
            order = self.order(position + repeat)
            with self.memory("decode"):
                runs = {name: self._metered(name, requests) for name in order}
            for index, one in enumerate(measured):
                one.add(order, {name: runs[name][index] for name in order})
                one.energy = {"sources": self.energy.sources, "not_readable": self.energy.not_readable}
        for request, one in zip(requests, measured, strict=True):
            for name in self.decoders:
                if name != BASELINE:
                    one.certificates[name] = self._worst(request, one.runs[name], one.baseline)
                elif DRAFTER not in self.decoders:  # a comparison shows the baseline's own certificate as well
                    one.certificates[name] = self.certifier.by_stock(request.prompt, one.baseline.output)
            for name in self.references:
                with self.memory("certify"):
                    one.certificates[name] = self._of_reference(name, request, one.runs[name][0], one.baseline)
        return measured

    def _of_reference(self, name: str, request: Request, answer: StockGeneration, baseline: Generation) -> Certificate:
        """Compare a text with ours if it has the same weights, or judge it by the model with its own weights."""
        if answer.failed:
            return Certificate("uncertified")
        if self.references[name].judged:
            return self.certifier.compare(request.prompt, answer.output, baseline.output)
        arbiter = self.arbiters.get(name)
        if isinstance(arbiter, Certifier):
            return arbiter.by_stock_with_ties(request.prompt, answer.output)
        return Certificate("uncertified")

    def not_certified(self, name: str) -> str:
        """Return why nobody judges the texts of a contender; empty if they are judged."""
        reference = self.references.get(name)
        if reference is None or reference.judged or isinstance(self.arbiters.get(name), Certifier):
            return ""
        unknown = "a server does not say which weights it has"
        other = "its weights may have other values than ours, and are in a form that is not read here"
        return str(self.arbiters.get(name, unknown if reference.weights == UNKNOWN_VALUES else other))

    def _metered(
        self, name: str, requests: Sequence[Request]
    ) -> list[tuple[Generation | StockGeneration, float | None]]:
        """Return each request's answer, and the joules that it took; None if they cannot be read.

        Requests that are decoded together share their joules by their shares of the time.
        """
        found: list[tuple[Generation | StockGeneration, float | None]] = []
        together = [[request] for request in requests] if name in self.references else [requests]
        for group in together:
            with self.energy() as reading:
                answers = self.decode(name, group)
            shares = [answer.elapsed_s if isinstance(answer, Generation) else 1.0 for answer in answers]
            found += zip(answers, shared(reading.joules, shares), strict=True)
        return found

    def _worst(self, request: Request, runs: Sequence[Generation], baseline: Generation) -> Certificate:
        """Return the worst certificate of several runs: every repeat must be lossless, not only the first."""
        worst = Certificate("exact")
        for generation in runs:
            with self.memory("certify"):
                certificate = self.certifier.certify(request.prompt, generation.output, baseline.output)
            if SEVERITY.index(certificate.verdict) >= SEVERITY.index(worst.verdict):
                worst = certificate
        return worst
