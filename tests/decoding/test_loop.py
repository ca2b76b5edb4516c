"""The loop, on targets whose texts are known: room, stops, batches, records. For real models see test_lossless."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lossless import ONE_EACH, ONE_NAMES
from made import costs_for, made
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.decoding import loop, record
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.record import PHASES, Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.drafters.jacobi import JacobiConfig
from stub_target import Rule, StubTarget, cycle, script, successor

NO_EOS: frozenset[int] = frozenset()


class Oracle(Drafter):
    """Drafts `depth` right tokens, whatever room there is, and notes what it is asked and told."""

    Config = DrafterConfig

    def __init__(self, target: StubTarget, depth: int) -> None:
        super().__init__(target, DrafterConfig(), costs_for(target))
        self.depth = depth
        self.rooms: list[int] = []
        self.steps: list[tuple[list[int], Step]] = []
        self.started: list[list[int]] = []

    def start(self, context: Context) -> None:
        self.started.append(context.tokens.copy())

    def propose(self, context: Context) -> Draft:
        self.rooms.append(context.room)
        text = context.tokens.copy()
        for _ in range(self.depth):
            text.append(self.target.full.rule(text))
        return Draft(TokenTree.chain(text[len(context.tokens) :]), "oracle")

    def observe(self, context: Context, step: Step) -> None:
        self.steps.append((context.tokens.copy(), step))


def greedy(rule: Rule, prompt: Sequence[int], length: int) -> list[int]:
    text = list(prompt)
    for _ in range(length):
        text.append(rule(text))
    return text[len(prompt) :]


def mixed(text: Sequence[int]) -> int:
    """A text that repeats itself often, but not always, and depends on more than its last token."""
    return (text[-1] * 3 + (text[-2] if len(text) > 1 else 0) + (len(text) % 7 == 0)) % 11


def wrong_at_times(text: Sequence[int]) -> int:
    """What a sparse path makes of `mixed`."""
    return 0 if len(text) % 3 == 0 else mixed(text)


def decoder(target: StubTarget, config: DrafterConfig, length: int, *, batch_size: int = 1) -> Decoder:
    return Decoder(target, made(target, config), Stopping(NO_EOS, length), batch_size=batch_size)


def replay(generation: Generation) -> list[int]:
    """The output, told again from the recorded steps alone, checking that every accepted path is one."""
    output = []
    for tokens, parents, path, bonus, *_ in generation.steps:
        parents = parents if parents is not None else range(ROOT, len(tokens) - 1)
        assert [parents[node] for node in path] == [ROOT, *path][: len(path)]
        output += [*(tokens[node] for node in path), bonus]
    return output


# Room.


@pytest.mark.parametrize("length", [1, 2, 3, 7, 10, 11])
def test_no_node_is_verified_that_could_not_be_emitted(length: int) -> None:
    target = StubTarget(successor)
    drafter = Oracle(target, 4)
    generation = Decoder(target, drafter, Stopping(NO_EOS, length)).decode([1])
    assert generation.output == greedy(successor, [1], length)
    left = length
    for room, (_, (tree,)) in zip(drafter.rooms, target.seen, strict=True):
        assert room == left - 1  # besides the draft, every step emits the bonus token
        assert len(tree) == min(4, room)
        left -= len(tree) + 1  # the oracle is always right
    assert left == 0


@pytest.mark.parametrize("config", ONE_EACH, ids=ONE_NAMES)
def test_no_draft_reaches_past_the_model_s_positions(config: DrafterConfig) -> None:
    for prompt, emitted in [(1, 19), (15, 5), (19, 1)]:
        target = StubTarget(cycle(3), max_positions=20)  # which itself objects to any position beyond
        text = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2][:prompt]
        generation = decoder(target, config, 100).decode(text)
        assert generation.output == greedy(cycle(3), text, emitted), prompt


def test_a_tree_is_cut_to_the_room_and_its_probes_with_it() -> None:
    class Bushy(Oracle):
        def propose(self, context: Context) -> Draft:
            right = super().propose(context).tree.tokens
            return Draft(
                TokenTree(right[[0, 0, 1, 2]], torch.tensor([ROOT, ROOT, 1, 2]), torch.tensor([False, *[True] * 3]))
            )

    target = StubTarget(successor)
    drafter = Bushy(target, 3)
    generation = Decoder(target, drafter, Stopping(NO_EOS, 6)).decode([1])
    assert generation.output == [2, 3, 4, 5, 6, 7]
    # The second step has room for one: the probe and the first candidate. Of the first, nodes 1 to 3 stand.
    assert [tree.tokens.tolist() for _, (tree,) in target.seen] == [[2, 2, 3, 4], [6, 6]]
    assert [step.nodes for _, step in drafter.steps] == [(1, 2, 3)]


@pytest.mark.parametrize("key", ["mt-7", 7, 0])
@pytest.mark.parametrize("length", [0, 20, 21, 500])
def test_a_prompt_that_leaves_no_room_is_refused_by_name_and_number(length: int, key: object) -> None:
    target = StubTarget(successor, max_positions=20)
    with pytest.raises(UserError) as caught:
        decoder(target, DrafterConfig(), 5).decode([1] * length, key=key)
    message = f"prompt {key} has {length} tokens, but this model has 20 positions: it takes prompts of 1 to 19"
    assert str(caught.value) == message


def test_a_token_that_the_model_does_not_have_is_refused() -> None:
    target = StubTarget(successor)
    with pytest.raises(
        UserError, match=f"prompt odd has the token id {target.vocab_size}, but this model has ids below"
    ):
        decoder(target, DrafterConfig(), 5).decode([1, target.vocab_size], key="odd")


# Stops.


@pytest.mark.parametrize(
    ("eos", "output", "by_depth"),
    [
        # The oracle drafts 2 3 4 5, all right, and 6 follows.
        (2, [2], [(1, 1), (1, 0), (1, 0), (1, 0)]),
        (3, [2, 3], [(1, 1), (1, 1), (1, 0), (1, 0)]),
        (5, [2, 3, 4, 5], [(1, 1), (1, 1), (1, 1), (1, 1)]),
        (6, [2, 3, 4, 5, 6], [(1, 1), (1, 1), (1, 1), (1, 1)]),  # as the bonus token
        (8, [2, 3, 4, 5, 6, 7, 8], [(2, 2), (2, 2), (2, 1), (2, 1)]),
    ],
)
def test_an_end_inside_an_accepted_run_cuts_the_output_and_the_counts(
    eos: int, output: list[int], by_depth: list[tuple[int, int]]
) -> None:
    target = StubTarget(successor)
    generation = Decoder(target, Oracle(target, 4), Stopping(frozenset({eos, 1}), 50)).decode(
        [1]
    )  # the prompt's is none
    assert generation.output == output
    assert generation.counts.new_tokens == len(output)
    assert [(d["offered"], d["accepted"]) for d in generation.counts.acceptance_by_depth()] == by_depth


@pytest.mark.parametrize("eos", range(2, 9))
def test_an_output_that_an_end_cut_replays_from_its_steps(eos: int) -> None:
    target = StubTarget(successor)
    generation = Decoder(target, Oracle(target, 4), Stopping(frozenset({eos}), 50)).decode([1])
    told = []
    for tokens, _, path, bonus, *_ in generation.steps:
        told += [tokens[node] for node in path] + ([] if bonus is None else [bonus])
    assert told == generation.output


def test_a_drafter_is_told_each_step_but_the_last() -> None:
    target = StubTarget(successor)
    drafter = Oracle(target, 2)
    Decoder(target, drafter, Stopping(NO_EOS, 7)).decode([1, 2])
    assert drafter.started == [[1, 2]]
    assert [tokens for tokens, _ in drafter.steps] == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8]]
    for tokens, step in drafter.steps:
        assert step.emitted == tuple(tokens[-3:])
        assert step.nodes == (0, 1)
        assert step.predictions.tolist() == list(step.emitted)
        assert torch.equal(step.logits.argmax(-1), step.predictions)


# Batches.

PROMPTS = [[1, 2, 3, 4], [5], [2, 2, 9, 1, 4, 4, 2, 2], [3, 1], [7, 8, 7, 8, 7, 8], [10] * 5, [6, 0]]


def target_for(config: DrafterConfig) -> StubTarget:
    """Who weighs guesses by a row's share of a forward drafts less in a batch, unless forwards all cost the same."""
    target = StubTarget(mixed, wrong_at_times)
    if getattr(config, "costs", None) == "measured":
        target.costs = CostCurve((1, 64), (1.0, 1.0))
        target.costs_of = lambda path: CostCurve((1, 64), (0.0, 0.0))
    return target


@pytest.mark.parametrize("batch_size", [3, 10])
@pytest.mark.parametrize("config", ONE_EACH, ids=ONE_NAMES)
def test_every_request_is_answered_once_and_as_if_alone(config: DrafterConfig, batch_size: int) -> None:
    # An end of sequence makes the answers end at different times, so that rows are freed and refilled out of order.
    stopping = Stopping(frozenset({5}), 30)
    requests = [Request(prompt, seed=i, key=f"q{i}") for i, prompt in enumerate(PROMPTS)]

    def run(batch_size: int) -> tuple[dict[object, Generation], StubTarget]:
        target = target_for(config)
        drafter = made(target, config)
        finished, grown = {}, {}
        for request, generation in Decoder(target, drafter, stopping, batch_size=batch_size).run(iter(requests)):
            assert request.key not in finished
            assert len(generation.output) > grown.get(request.key, 0)  # every step adds a token
            grown[request.key] = len(generation.output)
            if generation.ended:
                finished[request.key] = generation
        return finished, target

    together, target = run(batch_size)
    alone, _ = run(1)
    assert set(together) == {request.key for request in requests}
    for request in requests:
        expected, _ = stopping.cut([], greedy(mixed, request.prompt, 30))
        assert together[request.key].output == expected
        assert together[request.key].prompt == request.prompt
        if getattr(config, "warm", False):
            continue  # which remembers other requests: their drafts differ, and no more
        # What a request's drafts are does not depend on what else runs, but for what they cost in a batch.
        assert together[request.key].steps == alone[request.key].steps
        assert together[request.key].counts.acceptance_by_depth() == alone[request.key].counts.acceptance_by_depth()
    # The used rows are always the first ones, and full as long as requests are waiting.
    widths = [len(rows) for rows, _ in target.seen]
    assert all(rows == list(range(len(rows))) for rows, _ in target.seen)
    assert widths[0] == min(batch_size, len(PROMPTS))
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("config", ONE_EACH, ids=ONE_NAMES)
def test_forwards_that_a_request_is_charged_do_not_depend_on_what_else_runs(config: DrafterConfig) -> None:
    def forwards(batch_size: int) -> list[int]:
        target = target_for(config)
        requests = [Request(prompt, seed=i, key=i) for i, prompt in enumerate(PROMPTS)]
        run = decoder(target, config, 12, batch_size=batch_size).run(requests)
        counted = {request.key: generation.counts.target_forwards for request, generation in run if generation.ended}
        return [counted[i] for i in range(len(PROMPTS))]

    if not getattr(config, "warm", False):
        assert forwards(3) == forwards(1)


def test_requests_are_taken_when_there_is_room_for_them() -> None:
    taken = []

    def requests():
        for i, prompt in enumerate(PROMPTS):
            taken.append(i)
            yield Request(prompt, key=i)

    run = decoder(StubTarget(mixed), DrafterConfig(), 3, batch_size=2).run(requests())
    assert taken == []
    next(run)
    assert taken == [0, 1]
    assert [request.key for request, generation in run if generation.ended] == list(range(len(PROMPTS)))


def test_no_requests_no_steps() -> None:
    target = StubTarget(mixed)
    assert list(decoder(target, DrafterConfig(), 3, batch_size=2).run([])) == []
    assert target.forwards == 0


def test_a_decoder_may_be_used_again() -> None:
    target = StubTarget(mixed, wrong_at_times)
    again = decoder(target, JacobiConfig(), 20)
    first = again.decode(PROMPTS[0], seed=1)
    again.decode(PROMPTS[2], seed=1)
    second = again.decode(PROMPTS[0], seed=1)
    assert (first.output, first.steps, first.counts) == (second.output, second.steps, second.counts)


# Seeds and records.


def test_a_seed_is_a_draft_but_never_another_text() -> None:
    config = JacobiConfig(window=4, init="prompt_random", candidates=1, costs="flat")

    def run(seed: int) -> Generation:
        return decoder(StubTarget(mixed), config, 20).decode(PROMPTS[0], seed=seed)

    assert run(0).steps == run(0).steps
    assert run(0).steps != run(1).steps
    assert run(0).output == run(1).output


@pytest.mark.parametrize("config", ONE_EACH, ids=ONE_NAMES)
def test_the_output_can_be_told_from_the_steps(config: DrafterConfig) -> None:
    generation = decoder(StubTarget(mixed, wrong_at_times), config, 30).decode(PROMPTS[2])
    assert replay(generation) == generation.output
    assert len(generation.steps) <= generation.counts.target_forwards
    accepted = sum(len(path) for _, _, path, *_ in generation.steps)
    assert accepted + len(generation.steps) == 30
    assert accepted == sum(d["accepted"] for d in generation.counts.acceptance_by_depth())


class Ticking:
    """A clock that is one later at every look: where a phase begins and ends can be counted exactly."""

    now = 0

    def perf_counter(self) -> int:
        self.now += 1
        return self.now


class SlowTarget(StubTarget):
    """A target that is a clock as well: its work takes time, and nothing else does."""

    now = 0

    def perf_counter(self) -> int:
        return self.now

    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        super().prefill(row, tokens)
        self.now += 10 * len(tokens)

    def forward(
        self, rows: Sequence[int], roots: Sequence[int], trees: Sequence[TokenTree], **asked: object
    ) -> list[torch.Tensor]:
        self.now += 1
        return super().forward(rows, roots, trees, **asked)


@pytest.mark.parametrize("config", ONE_EACH, ids=ONE_NAMES)
def test_the_phases_of_a_request_add_up_to_all_its_time(config: DrafterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Ticking()
    monkeypatch.setattr(record, "time", time)
    generation = decoder(StubTarget(mixed, wrong_at_times), config, 12).decode(PROMPTS[0])
    seconds = generation.clock.seconds
    assert set(seconds) == set(PHASES) and all(s > 0 for s in seconds.values())
    assert generation.clock.decode_s == sum(seconds.values()) - seconds["prefill"]
    # Prefill, the drafter's start and every step are one block each; a tick passes between two blocks, and no more.
    blocks = 2 + len(generation.steps)
    assert sum(seconds.values()) == (time.now - 1) - (blocks - 1)


def test_in_a_batch_the_time_of_a_step_is_shared_out_but_every_request_waits_for_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "time", Ticking())
    run = decoder(StubTarget(mixed), DrafterConfig(), 3, batch_size=2).run([Request([1]), Request([2, 3])])
    generations = [generation for _, generation in run if generation.ended]
    first, second = (generation.clock.seconds for generation in generations)
    assert first == second
    # Three steps of one forward each, which takes one tick: half of each is booked to either request.
    assert first["verify"] == 1.5
    assert all(generation.latency_s >= 3 for generation in generations)


def test_a_latency_runs_from_arrival_to_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill takes 10 s for each token, a step 1 s; the caller's own time between two steps is nobody's latency."""
    clock = SlowTarget(mixed)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(record, "time", clock)
    requests = [Request([1, 1], key="a"), Request([2] * 4, key="b"), Request([3, 3], key="c")]
    latencies = {}
    for request, generation in Decoder(clock, made(clock, DrafterConfig()), Stopping(NO_EOS, 3), batch_size=2).run(
        requests
    ):
        clock.now += 1000
        if generation.ended:
            latencies[request.key] = generation.latency_s
    # a: its prefill, b's, three steps. b: its own and three steps. c: its own and three steps.
    assert latencies == {"a": 10 + 30 + 3, "b": 30 + 3, "c": 10 + 3}


def test_answers_come_in_the_order_of_the_requests() -> None:
    requests = [Request(prompt, key=i) for i, prompt in enumerate(PROMPTS)] + [Request(PROMPTS[0])]
    target = StubTarget(mixed)
    stopping = Stopping(frozenset({5}), 30)
    answers = Decoder(target, made(target, DrafterConfig()), stopping, batch_size=3).answer(requests)
    assert [answer.prompt for answer in answers] == [*PROMPTS, PROMPTS[0]]
    ends = [len(answer.output) for answer in answers]
    assert ends != sorted(ends)  # they did not end in this order


def test_the_cache_holds_the_text_without_its_last_token() -> None:
    """The last token is the root of a next step: a turn that goes on would start there."""
    target = StubTarget(script([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))
    generation = Decoder(target, Oracle(target, 3), Stopping(NO_EOS, 10)).decode([0, 1, 2])
    assert target.cache.texts[0] == [0, 1, 2, *generation.output][:-1]
