"""The bench: the order of runs, the lines of prompts.jsonl, and which repeat decides the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from made import made
from selfdraft.core.certificate import Certificate, first_divergence
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.none import NoDrafter
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.measuring.energy import EnergyMeter, Reading
from selfdraft.models.reference.stock import StockGeneration
from selfdraft.modules.bench import Bench, Measurement
from selfdraft.tracking.numbers.lines import refuse_malformed

PROMPT = [1, 2, 3]


@dataclass
class Scripted:
    """A decoder with given outputs and given seconds, run by run.

    Each further request of a run gets one token less, a second later.
    """

    name: str
    outputs: list[list[int]]
    seconds: list[float]
    log: list[str]
    seeds: list[tuple[int, object]] = field(default_factory=list)

    def answer(self, requests: list[Request]) -> list[Generation]:
        run = self.log.count(self.name)
        self.log.append(self.name)
        generations = []
        for place, request in enumerate(requests):
            self.seeds.append((request.seed, request.key))
            generation = Generation(list(request.prompt), output=self.outputs[run % len(self.outputs)][place:])
            generation.counts.new_tokens = generation.counts.target_forwards = len(generation.output)
            generation.clock.seconds |= {"prefill": 10 * self.seconds[run], "verify": self.seconds[run] + place}
            generation.latency_s = 2 * self.seconds[run]
            generations.append(generation)
        return generations


@dataclass
class ScriptedReference:
    name: str
    output: list[int]
    log: list[str]
    judged: bool = True
    weights: str = "other values"
    load_s: float | None = None
    peak_memory_mb: float | None = None

    def decode(self, prompt: list[int]) -> StockGeneration:
        self.log.append(self.name)
        return StockGeneration(self.output, len(self.output) - 1, float(len(self.log)))


class Judge:
    """Calls a divergence at index 0 a mismatch and any other a tie."""

    def certify(self, prompt: list[int], output: list[int], baseline: list[int]) -> Certificate:
        index = first_divergence(output, baseline)
        return Certificate("exact") if index is None else Certificate("tie" if index else "mismatch", index)

    compare = certify


def make_bench(
    drafted: list[list[int]], references: dict[str, list[int]] | None = None, baseline: list[int] | None = None
) -> tuple[Bench, list[str]]:
    log: list[str] = []
    bench = Bench(
        chat=None,
        decoders={
            "drafter": Scripted("drafter", drafted, [3.0, 1.0, 2.0, 9.0], log),
            "none": Scripted("none", [baseline or [7, 8]], [4.0, 8.0, 6.0, 9.0], log),
        },
        certifier=Judge(),
        references={name: ScriptedReference(name, output, log) for name, output in (references or {}).items()},
    )
    return bench, log


def measure(bench: Bench, repeats: int = 1, position: int = 0) -> Measurement:
    (done,) = bench.measure([Request(PROMPT, 11, "p")], repeats=repeats, position=position)
    return done


@pytest.mark.parametrize("references", [0, 1, 2])
def test_every_contender_has_every_place_in_the_order_once(references: int) -> None:
    bench, _ = make_bench([[7, 8]], {f"r{i}": [7, 8] for i in range(references)})
    names = bench.order(0)
    orders = [bench.order(position) for position in range(len(names))]
    for place in range(len(names)):
        assert sorted(order[place] for order in orders) == sorted(names)
    assert bench.order(len(names)) == bench.order(0)


def test_repeats_are_interleaved_and_rotate_the_first_contender() -> None:
    bench, log = make_bench([[7, 8]])
    done = measure(bench, repeats=3, position=1)
    assert log == ["none", "drafter", "drafter", "none", "none", "drafter"]
    assert [repeat["order"] for repeat in done.repeats] == [log[0:2], log[2:4], log[4:6]]
    assert {name: len(runs) for name, runs in done.runs.items()} == {"drafter": 3, "none": 3}


def test_every_contender_and_repeat_uses_the_prompt_s_seed() -> None:
    bench, _ = make_bench([[7, 8]])
    measure(bench, repeats=2)
    assert bench.drafter.seeds == bench.baseline.seeds == [(11, "p")] * 2


def test_seconds_are_medians_without_the_prefill() -> None:
    bench, _ = make_bench([[7, 8]])
    line = measure(bench, repeats=3).line()
    assert (line["decode_s"], line["baseline_decode_s"], line["prefill_s"]) == (2.0, 6.0, 20.0)
    assert [repeat["decode_s"] for repeat in line["repeats"]] == [
        {"drafter": 3.0, "none": 4.0}, {"none": 8.0, "drafter": 1.0}, {"drafter": 2.0, "none": 6.0},
    ]  # fmt: skip
    assert line["phases_s"]["verify"] == 2.0
    assert (line["latency_s"], line["baseline_latency_s"]) == (4.0, 12.0)


def test_requests_are_decoded_together_and_each_has_its_own_measurement() -> None:
    bench, log = make_bench([[7, 8], [7, 9]])
    requests = [Request([1], 11, "p"), Request([2, 2], 12, "q")]
    first, second = (done.line() for done in bench.measure(requests, repeats=2, position=0))
    assert log == ["drafter", "none", "none", "drafter"]  # whole batches are interleaved, not prompts
    assert bench.drafter.seeds == [(11, "p"), (12, "q")] * 2
    assert (first["prompt_ids"], second["prompt_ids"]) == ([1], [2, 2])
    assert (first["output_ids"], second["output_ids"]) == ([7, 8], [8])
    assert (first["decode_s"], second["decode_s"]) == (2.0, 3.0)
    assert [line["repeats"][1]["decode_s"] for line in (first, second)] == [
        {"none": 8.0, "drafter": 1.0}, {"none": 9.0, "drafter": 2.0},
    ]  # fmt: skip
    # Each output is judged by the baseline's for the same prompt, and by every repeat.
    assert [line["lossless"]["first_divergence"] for line in (first, second)] == [1, 0]
    assert [line["lossless"]["verdict"] for line in (first, second)] == ["tie", "mismatch"]


def test_references_decode_one_request_after_the_other() -> None:
    bench, log = make_bench([[7, 8]], {"right": [7, 8]})
    done = bench.measure([Request([1]), Request([2])], repeats=1, position=0)
    assert log == ["drafter", "none", "right", "right"]
    assert [one.line()["references"]["right"]["decode_s"] for one in done] == [3.0, 4.0]


@pytest.mark.parametrize(
    ("drafted", "verdict", "index"),
    [
        ([[7, 8], [7, 8], [7, 8]], "exact", None),
        ([[7, 8], [7, 0], [7, 8]], "tie", 1),
        ([[0, 8], [7, 0], [7, 8]], "mismatch", 0),
        ([[7, 8], [7, 8], [0, 8]], "mismatch", 0),
        ([[7, 0], [0, 8], [7, 0]], "mismatch", 0),
    ],
)
def test_the_worst_repeat_decides_the_verdict(drafted: list[list[int]], verdict: str, index: int | None) -> None:
    bench, _ = make_bench(drafted)
    lossless = measure(bench, repeats=3).line()["lossless"]
    assert (lossless["verdict"], lossless["first_divergence"]) == (verdict, index)


def test_the_baseline_s_ids_are_kept_only_if_they_differ() -> None:
    same, other = (measure(make_bench([drafted])[0]).line() for drafted in ([7, 8], [7, 9]))
    assert "baseline_output_ids" not in same
    assert (other["output_ids"], other["baseline_output_ids"]) == ([7, 9], [7, 8])


def test_a_reference_s_tokens_and_agreement_are_recorded() -> None:
    bench, _ = make_bench([[7, 8]], {"right": [7, 8], "wrong": [7, 9], "worse": [0, 8]})
    line = measure(bench).line()
    assert {name: reference["same_as_baseline"] for name, reference in line["references"].items()} == {
        "right": True, "wrong": False, "worse": False,
    }  # fmt: skip
    assert {name: reference["lossless"]["verdict"] for name, reference in line["references"].items()} == {
        "right": "exact", "wrong": "tie", "worse": "mismatch",
    }  # fmt: skip
    assert line["references"]["right"]["new_tokens"] == 1  # those that its seconds cover
    assert line["lossless"]["verdict"] == "exact"  # the drafter's own


def test_a_line_counts_tokens_of_drafter_and_baseline_separately() -> None:
    bench, _ = make_bench([[7, 8, 9]], baseline=[7, 8, 9, 4])
    line = measure(bench).line()
    assert (line["new_tokens"], line["baseline_new_tokens"], line["target_forwards"]) == (3, 4, 3)
    assert line["prompt_ids"] == PROMPT
    assert Counter(line["repeats"][0]["order"]) == {"drafter": 1, "none": 1}


class Counted(EnergyMeter):
    """Counts 6 J for every block of code."""

    @property
    def sources(self) -> list[str]:
        return ["dram"]

    @contextmanager
    def __call__(self) -> Iterator[Reading]:
        reading = Reading()
        yield reading
        reading.joules = 6.0


def test_joules_of_a_batch_are_shared_by_time_and_every_contender_has_its_own() -> None:
    bench, _ = make_bench([[7, 8]], {"other": [7, 8]})
    requests = [Request([1]), Request([2])]
    measured = replace(bench, energy=Counted()).measure(requests, repeats=1, position=0)
    first, second = (one.line() for one in measured)
    # Of one batch, 33 s and 34 s of the drafter, 44 s and 45 s of plain decoding.
    assert (first["joules"], second["joules"]) == (pytest.approx(6 * 33 / 67), pytest.approx(6 * 34 / 67))
    assert first["baseline_joules"] == pytest.approx(6 * 44 / 89)
    assert first["energy"] == {"sources": ["dram"], "not_readable": ""}
    assert [one.comparison()["contenders"]["other"]["joules"] for one in measured] == [6.0, 6.0]
    assert measured[0].comparison()["contenders"]["none"]["joules"] == first["baseline_joules"]
    refuse_malformed(
        [{"id": "p", "turn": 0, "category": "c", "family": "c", "text": "", "peak_memory_mb": 1, **first}], Path()
    )


def test_lines_have_no_joules_where_they_cannot_be_read(tmp_path: Path) -> None:
    bench, _ = make_bench([[7, 8]])
    line = measure(replace(bench, energy=EnergyMeter(tmp_path)), repeats=2).line()
    assert not {"joules", "baseline_joules"} & set(line)
    assert line["energy"]["sources"] == []
    assert line["energy"]["not_readable"].startswith("RAPL: no counters")


def test_times_are_medians_over_the_repeats_if_all_have_them() -> None:
    one = Measurement()
    for first_token_s in (0.3, 0.1, 0.2):
        run = Generation([1], output=[7], first_token_s=first_token_s)
        one.add(["none"], {"none": (run, first_token_s * 10)})
    part = one.comparison()["contenders"]["none"]
    assert (part["first_token_s"], part["joules"]) == (0.2, 2.0)
    one.add(["none"], {"none": (Generation([1], output=[7]), None)})
    part = one.comparison()["contenders"]["none"]
    assert part["first_token_s"] is None
    assert "joules" not in part


def test_other_weights_are_judged_by_the_model_that_has_them() -> None:
    target = Target(tiny_model(max_positions=64))
    right = Decoder(target, made(target, NoDrafter.Config()), Stopping(frozenset(), 6)).decode(PROMPT).output
    wrong = [*right[:3], (right[3] + 1) % 96, *right[4:]]
    bench, log = make_bench([[7, 8]])
    references = {
        name: ScriptedReference(name, text, log, judged=False)
        for name, text in (("right", right), ("wrong", wrong), ("unread", right), ("served", right))
    }
    references["served"].weights = "unknown"
    arbiter = Certifier(target)
    bench = replace(
        bench, references=references, arbiters={"right": arbiter, "wrong": arbiter, "unread": "no such type"}
    )
    (one,) = bench.measure([Request(PROMPT)], repeats=1, position=0)
    verdicts = {name: one.certificates[name].verdict for name in references}
    assert verdicts == {"right": "exact", "wrong": "mismatch", "unread": "uncertified", "served": "uncertified"}
    reasons = {name: bench.not_certified(name) for name in (*references, "none")}
    assert reasons["right"] == reasons["wrong"] == reasons["none"] == "" and reasons["unread"] == "no such type"
    assert reasons["served"] == "a server does not say which weights it has"
