"""The decoding loop, for any drafter, sampling rule and batch size. Read this file first to see how decoding works.

Each step (`Decoder._step`):

1. propose: the drafter proposes a tree for every request.
2. forward: the target verifies all trees at once.
3. accept: the device decides which nodes are right, and the host follows them to the bonus token.
4. commit: the target keeps the keys of the accepted nodes, and drops those of the others.
5. observe: the drafter learns from the step.

A request occupies one row of the target's cache. A finished request makes room for a waiting one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.random import PCG64, Generator, default_rng
from torch import Tensor

from selfdraft.core.acceptance import Acceptance, follow, match, reject
from selfdraft.core.errors import UserError
from selfdraft.core.predictions import best_tokens
from selfdraft.core.sampling import NextToken, draw, most_likely
from selfdraft.decoding.prefixes import longest_prefix
from selfdraft.decoding.record import Generation, PhaseClock
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context, Draft, Drafter, Step
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.kernels.threads import single_threaded
from selfdraft.models.measuring.memory import PeakMemory

NOISE_AHEAD = 256  # numbers drawn beyond the last one needed, so that a long answer needs few calls of the generator


@dataclass(frozen=True)
class Request:
    """A prompt to answer.

    Attributes:
        seed: for the request's own random generator.
        key: any object by which the caller recognises the request.
        rule, stopping: None for the decoder's.
    """

    prompt: Sequence[int]
    seed: int = 0
    key: Any = None
    rule: NextToken | None = None
    stopping: Stopping | None = None


class _Noise:
    """A uniform number for each position of an answer, drawn only as far as the answer has come.

    They are not all drawn at first, because a caller of `generate` may allow billions of tokens and end the answer by a
    stopping criterion.
    """

    _rng: Generator | None = None

    def __init__(self, seed: int) -> None:
        self._seed, self._drawn = seed, torch.empty(0, dtype=torch.double)

    def at(self, positions: Tensor) -> Tensor:
        """Return the numbers of (n,) positions; a position always has the same number."""
        missing = int(positions.max()) + 1 - len(self._drawn)
        if missing > 0:
            self._rng = self._rng or default_rng(self._seed)
            self._drawn = torch.cat([self._drawn, torch.from_numpy(self._rng.random(missing + NOISE_AHEAD))])
        return self._drawn[positions]


@dataclass
class _Active:
    """A request being decoded. `arrived` is its arrival by `time.perf_counter`."""

    request: Request
    context: Context
    generation: Generation
    stopping: Stopping
    noise: _Noise
    arrived: float


@dataclass(frozen=True)
class _Verdict:
    """The device's decision about one draft.

    Attributes:
        after: (n + 1,) the token that follows the root and each node if it is the last accepted one.
        right: (n,) whether each node is accepted if its parent is; None if the host decides by comparing tokens.
        distributions: (n + 1, V) see `Step`.
        best: (2, n + 1, k) the most probable tokens and their probabilities, if the drafter wants them; see `Step`.
    """

    after: Tensor
    right: Tensor | None = None
    distributions: Tensor | None = None
    best: Tensor | None = None


class Decoder:
    """Decodes requests with a drafter, up to `batch_size` of them at once, greedily or by the given sampling rule."""

    def __init__(
        self,
        target: TargetProtocol,
        drafter: Drafter,
        stopping: Stopping,
        *,
        rule: NextToken | None = None,
        batch_size: int = 1,
        memory: PeakMemory | None = None,
        shares_prefixes: bool = False,
    ) -> None:
        """Take the parts.

        Args:
            memory: measures the peak memory of prefills, if the caller wants to know it.
            shares_prefixes: copy what a prompt has in common with a text in the cache, in place of a prefill of it.
                Prefills of single requests are then not what they take alone, so evaluations leave it out.
        """
        self.shares_prefixes = shares_prefixes
        self.memory = memory or _unmeasured
        self.target, self.drafter, self.stopping = target, drafter, stopping
        self.rule, self.batch_size = rule or NextToken(), batch_size
        self._root = torch.zeros(1, dtype=torch.long)  # the depths of a tree's root alone

    def decode(self, prompt: Sequence[int], *, seed: int = 0, key: object = None) -> Generation:
        """Return the answer to one prompt."""
        *_, (_, generation) = self.run([Request(prompt, seed, key)])
        return generation

    def answer(self, requests: Sequence[Request]) -> list[Generation]:
        """Return the answers to all requests, in the order of the requests."""
        found = {id(request): generation for request, generation in self.run(requests)}
        return [found[id(request)] for request in requests]

    def stream(self, prompt: Sequence[int], *, seed: int = 0) -> Iterator[list[int]]:
        """Yield the tokens of one answer, as each step emits them."""
        shown = 0
        for _, generation in self.run([Request(prompt, seed)]):
            yield generation.output[shown:]
            shown = len(generation.output)

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generation]]:
        """Decode all requests; a finished one makes room for the next.

        Yields:
            After every step, for each request that took part, the request and its generation so far; it is done when
            ``generation.ended`` says why.

        Raises:
            UserError: for a prompt that leaves no room to answer within the model's positions.
        """
        waiting = iter(requests)
        self.target.allocate(self.batch_size, 0)
        active: list[_Active] = []
        while True:
            begin = time.perf_counter()
            active = self._admit(waiting, active)
            if not active:
                return
            now = time.perf_counter()
            for a in active:  # every request has waited for the new prefills, a new one only since its arrival
                a.generation.latency_s += now - max(begin, a.arrived)
            clock = PhaseClock()
            with clock.rest("other"):
                self._step(active, clock)
            for a in active:
                a.generation.clock.add(clock, share=1 / len(active))
                a.generation.latency_s += clock.decode_s
                if not a.generation.step_s:
                    a.generation.first_token_s = a.generation.latency_s
                a.generation.step_s.append(clock.decode_s)
                if a.generation.ended:
                    a.generation.diagnostics = self.drafter.diagnostics(a.context)
                    a.generation.iterates = self.drafter.iterates(a.context)
            for a in active:
                yield a.request, a.generation

    @torch.inference_mode()
    def _step(self, active: list[_Active], clock: PhaseClock) -> None:
        contexts = [a.context for a in active]
        for context in contexts:
            context.rows = len(active)
        for context in contexts:
            self.target.refresh(context.row, context.tokens)
        with clock("draft"):
            proposed = self.drafter.propose_batch(contexts)
            drafts = [self._usable(d, c) for d, c in zip(proposed, contexts, strict=True)]
        with clock("verify"):
            rows, roots = [c.row for c in contexts], [c.tokens[-1] for c in contexts]
            states: list[list[Tensor]] = [[] for _ in drafts]
            logits = self.target.forward(
                rows,
                roots,
                [d.tree for d in drafts],
                reuse=[d.reuse for d in drafts],
                keep=states if any(d.wants_states for d in drafts) else None,
                through=next((d.through for d in drafts if d.through is not None), None),
            )
            with single_threaded(self.target.compiled):
                verdicts = [self._verify(a, d, x) for a, d, x in zip(active, drafts, logits, strict=True)]
                if count := self.drafter.best:
                    verdicts = [replace(v, best=best_tokens(x, count)) for v, x in zip(verdicts, logits, strict=True)]
                decided = _to_host(verdicts)
        for a, draft, x, verdict, kept, (after, right, best) in zip(
            active, drafts, logits, verdicts, states, decided, strict=True
        ):
            tree = draft.tree
            if len(tree):
                acceptance = follow(tree, match(tree, after) if right is None else right, after)
            else:  # saves the small tensors of a step without a draft
                acceptance = Acceptance((), int(after[0]))
            with clock("commit"):
                self.target.commit(a.context.row, acceptance.nodes)
            written = [*tree.tokens[list(acceptance.nodes)].tolist(), acceptance.bonus]
            emitted, a.generation.ended = a.stopping.cut(a.generation.output, written)
            state = kept[0] if kept else None
            step = Step(draft, x, after, acceptance.nodes, tuple(emitted), verdict.distributions, state, best)
            a.generation.add(step)
            a.context.tokens += emitted
            a.context.room -= len(emitted)
            if not a.generation.ended:
                with clock("draft"):
                    self.drafter.observe(a.context, step)
                    self.drafter.explore(a.context)

    def _usable(self, draft: Draft, context: Context) -> Draft:
        """Return the part of a draft that can still be emitted, and verified in the target's present mode."""
        draft = draft.up_to_depth(min(context.room, self.target.longest_draft(context.row)))
        if self.target.chains_only and not draft.tree.is_chain:
            draft = draft.restricted_to(draft.tree.first_branch())
        return draft

    def _verify(self, a: _Active, draft: Draft, logits: Tensor) -> _Verdict:
        """Decide on one draft, on the device."""
        context, tree = a.context, draft.tree
        rule = context.rule
        scores = rule.scores(logits, context.tokens, context.prompt_length, tree)
        if not rule.sample:
            return _Verdict(most_likely(scores))
        p = rule.probabilities(scores)
        if draft.q is None:
            # One random number per position, independent of drafts: the text is what sampling without drafts writes.
            depths = torch.cat([torch.zeros(1, dtype=torch.long), tree.depths]) if len(tree) else self._root
            after = draw(p, a.noise.at(len(a.generation.output) + depths).to(p.device))
            # What nobody reads is freed now, and its memory serves the next row: a batch's would be in no cache.
            return _Verdict(after, distributions=p if self.drafter.distributions else None)
        trials, draws = context.uniforms(len(tree), p.device), context.uniforms(len(tree) + 1, p.device)
        right, after = reject(tree, p, draft.q, trials, draws)
        return _Verdict(after, right, p)

    def _admit(self, waiting: Iterator[Request], before: Sequence[_Active]) -> list[_Active]:
        """Prefill waiting requests into the free rows, without the last prompt token, which is the first root.

        Args:
            before: the requests of the last step. Rows of those that have ended are free.

        Returns:
            The requests of the next step, in the order of their rows.
        """
        active = [a for a in before if not a.generation.ended]
        free = sorted(set(range(self.batch_size)) - {a.context.row for a in active})
        texts = {a.context.row: a.context.tokens for a in before} if self.shares_prefixes else {}
        while free and (request := next(waiting, None)) is not None:
            prompt, positions = list(request.prompt), self.target.max_positions
            stopping = request.stopping or self.stopping
            name = "" if request.key is None else f" {request.key}"
            if max(prompt, default=0) >= self.target.vocab_size:
                raise UserError(
                    f"prompt{name} has the token id {max(prompt)}, but this model has ids below "
                    f"{self.target.vocab_size}: its tokenizer is another model's"
                )
            if not prompt or (len(prompt) >= positions and not stopping.past_positions):
                raise UserError(
                    f"prompt{name} has {len(prompt)} tokens, but this model has {positions} positions: "
                    f"it takes prompts of 1 to {positions - 1}"
                )
            if not active:  # a request that is being decoded would have to wait for it
                self.drafter.settle()
            stopping = stopping.within(positions - len(prompt))
            generation, rng = Generation(prompt), default_rng(request.seed)
            source, shared = longest_prefix(prompt[:-1], texts, self.target.cache.lengths)
            row = source if source in free else free[0]
            free.remove(row)
            assert isinstance(rng.bit_generator, PCG64)
            rng.bit_generator.advance(stopping.max_new_tokens + 1)  # the numbers before that are `_Noise`'s
            room, arrived = stopping.max_new_tokens - 1, time.perf_counter()
            context = Context(row, prompt.copy(), len(prompt), room, rng, request.rule or self.rule)
            with self.memory("prefill"), generation.clock("prefill"):
                shared = self.target.copy_prefix(source, row, shared)
                # A compiled forward computes over every slot, used or not, so there the cache grows with the text.
                if not self.target.compiled:
                    self.target.cache.reserve(min(len(prompt) + stopping.max_new_tokens, positions))
                self.target.prefill(row, prompt[shared:-1])
                if self.target.device.type == "cuda":  # so that the first step is not charged for it
                    torch.cuda.synchronize(self.target.device)
            with generation.clock("draft"):
                self.drafter.start(context)
            active.append(_Active(request, context, generation, stopping, _Noise(request.seed), arrived))
            if self.shares_prefixes:
                texts[row] = context.tokens
        return self._together(active)

    def _together(self, active: list[_Active]) -> list[_Active]:
        """Move requests into free rows until the first rows are used: a forward then needs no copy of the cache."""
        free = sorted(set(range(len(active))) - {a.context.row for a in active})
        for row, a in zip(free, (a for a in active if a.context.row >= len(active)), strict=True):
            self.target.cache.move(a.context.row, row)
            a.context.row = row
        return sorted(active, key=lambda a: a.context.row)


@contextmanager
def _unmeasured(_: str) -> Iterator[None]:
    yield


def _to_host(verdicts: Sequence[_Verdict]) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Return all rows' (after, right, best) on the host, in one transfer, so that a step waits for the device once.

    Doubles hold both token ids and chances exactly, so one tensor suffices. Nothing is transferred from a CPU;
    subclasses of tensors may stand for something elsewhere.
    """
    if all(type(v.after) is Tensor and v.after.device.type == "cpu" for v in verdicts):
        return [(v.after, v.right, v.best) for v in verdicts]
    parts = [part for v in verdicts for part in (v.after, v.right, v.best) if part is not None]
    flat = torch.cat([part.flatten().double() for part in parts]).cpu().split([part.numel() for part in parts])
    there = iter(flat)
    return [
        (
            next(there).long(),
            None if v.right is None else next(there).bool(),
            None if v.best is None else next(there).view(v.best.shape),
        )
        for v in verdicts
    ]
