"""The decoding loop: propose, forward, accept, commit, observe. One screen, for any drafter and any batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from numpy.random import default_rng

from selfdraft.core.acceptance import accept_greedy
from selfdraft.core.errors import UserError
from selfdraft.decoding.record import Generation, PhaseClock
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context, Drafter, Step
from selfdraft.models.target import Target


@dataclass(frozen=True)
class Request:
    """A prompt to answer. `seed` feeds the request's own generator; `key` is the caller's, to know it again."""

    prompt: Sequence[int]
    seed: int = 0
    key: object = None


@dataclass
class _Active:
    request: Request
    context: Context
    generation: Generation
    stopping: Stopping
    done: bool = False


class Decoder:
    """Decodes requests greedily with a drafter, up to `batch_size` of them at once."""

    def __init__(self, target: Target, drafter: Drafter, stopping: Stopping, *, batch_size: int = 1) -> None:
        self.target, self.drafter, self.stopping, self.batch_size = target, drafter, stopping, batch_size

    def decode(self, prompt: Sequence[int], *, seed: int = 0, key: object = None) -> Generation:
        """Answer one prompt."""
        for _, generation, done in self.run([Request(prompt, seed, key)]):
            if done:
                return generation
        raise AssertionError("run() ends only when every request is done")

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generation, bool]]:
        """Decode all requests; a finished one makes room for the next.

        Yields:
            After every step, for each request that took part: the request, its generation so far, whether it is done.

        Raises:
            UserError: for a prompt that leaves no room to answer within the model's positions.
        """
        waiting = iter(requests)
        self.target.allocate(self.batch_size, 0)
        active: list[_Active] = []
        while True:
            active = self._drop_done(active)
            self._admit(waiting, active)
            if not active:
                return
            clock = PhaseClock()
            with clock.rest("other"):
                self._step(active, clock)
            for a in active:
                a.generation.clock.add(clock)  # in a batch, each request waited for the whole step
                yield a.request, a.generation, a.done

    @torch.inference_mode()
    def _step(self, active: list[_Active], clock: PhaseClock) -> None:
        contexts = [a.context for a in active]
        forwards = self.target.forwards
        with clock("draft"):
            proposed = self.drafter.propose_batch(contexts)
            drafts = [replace(d, tree=d.tree.up_to_depth(c.room)) for d, c in zip(proposed, contexts, strict=True)]
        with clock("verify"):
            rows, roots = [c.row for c in contexts], [c.tokens[-1] for c in contexts]
            logits = self.target.forward(rows, roots, [d.tree for d in drafts])
            # The one synchronisation of a step: every row's argmax comes to the host together.
            predictions = torch.cat([x.argmax(-1) for x in logits]).cpu().split([len(x) for x in logits])
        forwards = self.target.forwards - forwards  # those that drafting asked for are counted too
        for a, draft, row_logits, row_predictions in zip(active, drafts, logits, predictions, strict=True):
            acceptance = accept_greedy(draft.tree, row_predictions)
            with clock("commit"):
                self.target.commit(a.context.row, acceptance.path)
            written = [*draft.tree.tokens[list(acceptance.path)].tolist(), acceptance.bonus]
            emitted, a.done = a.stopping.cut(len(a.generation.output), written)
            step = Step(draft, row_logits, row_predictions, acceptance.path, tuple(emitted))
            a.generation.add(step)
            a.generation.counts.target_forwards += forwards
            a.context.tokens += emitted
            a.context.room -= len(emitted)
            if not a.done:
                with clock("draft"):
                    self.drafter.observe(a.context, step)

    def _admit(self, waiting: Iterator[Request], active: list[_Active]) -> None:
        """Prefill waiting requests into the free rows. The last prompt token is left over: it is the first root."""
        while len(active) < self.batch_size and (request := next(waiting, None)) is not None:
            prompt, positions = list(request.prompt), self.target.max_positions
            if not 0 < len(prompt) < positions:
                raise UserError(
                    f"prompt {request.key or ''} has {len(prompt)} tokens, but this model has {positions} positions: "
                    f"it takes prompts of 1 to {positions - 1}"
                )
            stopping = self.stopping.within(positions - len(prompt))
            row, generation = len(active), Generation(prompt)
            context = Context(row, prompt.copy(), len(prompt), stopping.max_new_tokens - 1, default_rng(request.seed))
            with generation.clock("prefill"):
                self.target.cache.clear(row)
                self.target.cache.reserve(len(prompt) + stopping.max_new_tokens)
                self.target.prefill(row, prompt[:-1])
            with generation.clock("draft"):
                self.drafter.start(context)
            active.append(_Active(request, context, generation, stopping))

    def _drop_done(self, active: list[_Active]) -> list[_Active]:
        """Free the rows of finished requests, keeping the used rows together: a forward then needs no cache copy."""
        going = [a for a in active if not a.done]
        for row, a in enumerate(going):
            if a.context.row != row:
                self.target.cache.move(a.context.row, row)
                a.context.row = row
        return going
