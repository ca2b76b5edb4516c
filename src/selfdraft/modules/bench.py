"""The decoders that an evaluation compares: the drafter, our autoregressive baseline, references outside SelfDraft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import torch

from selfdraft.core.certificate import Certificate
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.record import Generation
from selfdraft.drafters.guard import PAUSED
from selfdraft.models.chat import Chat
from selfdraft.models.memory import PeakMemory
from selfdraft.models.stock import StockGeneration

DRAFTER, BASELINE = "drafter", "none"
SEVERITY = ("exact", "sampled", "tie", "mismatch")


class Reference(Protocol):
    """A decoder outside SelfDraft.

    Attributes:
        judged: whether its texts are compared with ours, which takes the same weights.
    """

    judged: bool

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
        memory: records the peak memory of loading, prefilling, decoding and certifying.
        fingerprint: the model's fingerprint. engine: a line that says how the target's layers are run.
    """

    chat: Chat
    decoders: dict[str, Decoder]
    certifier: Certifier
    references: Mapping[str, Reference] = field(default_factory=dict)
    memory: PeakMemory = field(default_factory=lambda: PeakMemory(torch.device("cpu")))
    fingerprint: str = ""
    engine: str = "eager"

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
        if name in self.references:
            return [self.references[name].decode(request.prompt) for request in requests]
        return self.decoders[name].answer(requests)

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
            for name in self.decoders:
                if name != BASELINE:
                    one.certificates[name] = self._worst(request, one.runs[name], one.baseline)
                elif DRAFTER not in self.decoders:  # a comparison shows the baseline's own certificate as well
                    one.certificates[name] = self.certifier.by_stock(request.prompt, one.baseline.output)
            for name, reference in self.references.items():
                answer: StockGeneration = one.runs[name][0]
                with self.memory("certify"):
                    one.certificates[name] = (
                        self.certifier.compare(request.prompt, answer.output, one.baseline.output)
                        if reference.judged and not answer.failed
                        else Certificate("uncertified")
                    )
        return measured

    def _worst(self, request: Request, runs: Sequence[Generation], baseline: Generation) -> Certificate:
        """Return the worst certificate of several runs: every repeat must be lossless, not only the first."""
        worst = Certificate("exact")
        for generation in runs:
            with self.memory("certify"):
                certificate = self.certifier.certify(request.prompt, generation.output, baseline.output)
            if SEVERITY.index(certificate.verdict) >= SEVERITY.index(worst.verdict):
                worst = certificate
        return worst


@dataclass
class Measurement:
    """All runs of one prompt.

    Attributes:
        runs: by contender, one run per repeat.
        repeats: for each repeat, the order and each contender's decode seconds.
        certificates: by contender. Of ours, the worst one over the repeats; of a reference, the one that compares its
            output with our baseline's. An evaluation's baseline, with which all are compared, has none.
    """

    runs: dict[str, list] = field(default_factory=dict)
    repeats: list[dict] = field(default_factory=list)
    certificates: dict[str, Certificate] = field(default_factory=dict)

    def add(self, order: list[str], runs: dict[str, Generation | StockGeneration]) -> None:
        """Add one repeat."""
        for name, run in runs.items():
            self.runs.setdefault(name, []).append(run)
        self.repeats.append({"order": order, "decode_s": {name: runs[name].decode_s for name in order}})

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
            "repeats": self.repeats,
            "contenders": {name: self._of(name) for name in self.runs},
        }

    def _of(self, name: str) -> dict:
        first = self.runs[name][0]
        part = self._of_reference(name) if isinstance(first, StockGeneration) else self._of_ours(name)
        return part | ({} if first.output == self.baseline.output else {"output_ids": first.output})

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
            "first_token_s": first.first_token_s,
            "step_s": [round(seconds, 6) for seconds in first.step_s],
            "lossless": self.certificates.get(name, Certificate("exact")).to_dict(),
            "acceptance_by_depth": counts.acceptance_by_depth(),
            "phases_s": {phase: median(clock[phase] for clock in clocks) for phase in clocks[0]},
            "steps": first.steps,
            "diagnostics": first.diagnostics,
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
            "lossless": self.certificates[name].to_dict(),
            "acceptance_by_depth": [],
            "phases_s": {},
            **({"failed": runs[0].failed} if runs[0].failed else {}),
        }
