"""The decoders that an evaluation compares: the drafter, our autoregressive baseline, references outside SelfDraft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from selfdraft.core.certificate import Certificate
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.record import Generation
from selfdraft.drafters.guard import PAUSED
from selfdraft.models.chat import Chat
from selfdraft.models.memory import PeakMemory
from selfdraft.models.stock import StockGenerate, StockGeneration

DRAFTER, BASELINE = "drafter", "none"
SEVERITY = ("exact", "sampled", "tie", "mismatch")


@dataclass(frozen=True)
class Bench:
    """The decoders that answer the same prompts (the "contenders"), with the certifier and the record of peak memory.

    Attributes:
        references: by name, decoders outside SelfDraft that are timed too.
        memory: records the peak memory of loading, prefilling, decoding and certifying.
        fingerprint: the model's fingerprint. engine: a line that says how the target's layers are run.
    """

    chat: Chat
    drafter: Decoder
    baseline: Decoder
    certifier: Certifier
    references: dict[str, StockGenerate] = field(default_factory=dict)
    memory: PeakMemory = field(default_factory=lambda: PeakMemory(torch.device("cpu")))
    fingerprint: str = ""
    engine: str = "eager"

    def order(self, position: int) -> list[str]:
        """Return the contenders' names, rotated by `position`, so that none is always the first to run."""
        names = [DRAFTER, BASELINE, *self.references]
        shift = position % len(names)
        return names[shift:] + names[:shift]

    def decode(self, name: str, requests: Sequence[Request]) -> list[Generation] | list[StockGeneration]:
        """Decode all requests with one contender: references one request at a time, ours in batches."""
        if name in self.references:
            return [self.references[name].decode(request.prompt) for request in requests]
        return (self.drafter if name == DRAFTER else self.baseline).answer(requests)

    def measure(self, requests: Sequence[Request], *, repeats: int, position: int) -> list[Measurement]:
        """Decode the requests `repeats` times with every contender, interleaved, in rotating order.

        Returns:
            One measurement per request.
        """
        measured = [Measurement() for _ in requests]
        for repeat in range(repeats):
            order = self.order(position + repeat)
            with self.memory("decode"):
                runs = {name: self.decode(name, requests) for name in order}
            for index, one in enumerate(measured):
                one.add(order, {name: runs[name][index] for name in order})
        for request, one in zip(requests, measured, strict=True):
            for generation in one.runs[DRAFTER]:  # every repeat must be lossless, not only the first
                with self.memory("certify"):
                    certificate = self.certifier.certify(request.prompt, generation.output, one.baseline.output)
                if SEVERITY.index(certificate.verdict) >= SEVERITY.index(one.certificate.verdict):
                    one.certificate = certificate
            for name in self.references:
                with self.memory("certify"):
                    one.beside[name] = self.certifier.compare(
                        request.prompt, one.runs[name][0].output, one.baseline.output
                    )
        return measured


@dataclass
class Measurement:
    """All runs of one prompt.

    Attributes:
        runs: by contender, one run per repeat.
        repeats: for each repeat, the order and each contender's decode seconds.
        certificate: the drafter's worst one over the repeats.
        beside: by reference, the certificate that compares its output with our baseline's.
    """

    runs: dict[str, list] = field(default_factory=dict)
    repeats: list[dict] = field(default_factory=list)
    certificate: Certificate = field(default_factory=lambda: Certificate("exact"))
    beside: dict[str, Certificate] = field(default_factory=dict)

    def add(self, order: list[str], runs: dict[str, Generation | StockGeneration]) -> None:
        """Add one repeat."""
        for name, run in runs.items():
            self.runs.setdefault(name, []).append(run)
        self.repeats.append({"order": order, "decode_s": {name: _decode_s(runs[name]) for name in order}})

    @property
    def drafter(self) -> Generation:
        """The drafter's first run (counts and output are the same in every repeat)."""
        return self.runs[DRAFTER][0]

    @property
    def baseline(self) -> Generation:
        """The baseline's first run."""
        return self.runs[BASELINE][0]

    def line(self) -> dict:
        """Return the measured part of a line of prompts.jsonl. Seconds are medians over the repeats.

        In a batch, the seconds of a phase are this prompt's share of them; only a latency is wall time.
        """
        drafter, counts = self.drafter, self.drafter.counts
        clocks = [run.clock.seconds for run in self.runs[DRAFTER]]
        return {
            "prompt_ids": drafter.prompt,
            "output_ids": drafter.output,
            "new_tokens": counts.new_tokens,
            "ended": drafter.ended,
            "target_forwards": counts.target_forwards,
            "prefill_s": median(clock["prefill"] for clock in clocks),
            "decode_s": median(run.clock.decode_s for run in self.runs[DRAFTER]),
            "baseline_decode_s": median(run.clock.decode_s for run in self.runs[BASELINE]),
            "latency_s": median(run.latency_s for run in self.runs[DRAFTER]),
            "baseline_latency_s": median(run.latency_s for run in self.runs[BASELINE]),
            "baseline_new_tokens": self.baseline.counts.new_tokens,
            "lossless": self.certificate.to_dict(),
            "acceptance_by_depth": counts.acceptance_by_depth(),
            "phases_s": {phase: median(clock[phase] for clock in clocks) for phase in clocks[0]},
            "repeats": self.repeats,
            "references": {
                name: {
                    "new_tokens": runs[0].decoded,
                    "decode_s": median(run.decode_s for run in runs),
                    "same_as_baseline": runs[0].output == self.baseline.output,
                    "lossless": self.beside[name].to_dict(),
                }
                for name, runs in self.runs.items()
                if name not in (DRAFTER, BASELINE)
            },
            "steps": drafter.steps,
            "diagnostics": drafter.diagnostics,
            "stood_down": sum(step[4] == PAUSED for step in drafter.steps),
            # Written only if they differ, so that the file does not hold a text twice.
            **({} if drafter.output == self.baseline.output else {"baseline_output_ids": self.baseline.output}),
        }


def _decode_s(run: Generation | StockGeneration) -> float:
    return run.clock.decode_s if isinstance(run, Generation) else run.decode_s
