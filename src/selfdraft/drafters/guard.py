"""Never slower: a drafter around another one, which lets it draft only where that pays, or is cheap to try.

Two rules. *Prediction*: a request drafts on while its own recent drafts gave more tokens per second than plain
decoding. *Balance*: what drafts gain and lose, in seconds, is kept in an account with little room for gains; a request
whose drafts do not pay may try again only while the account is not overdrawn, and a share `BUDGET` of the time decoded
is paid into it. So a drafter that never pays costs that share and the first few tries, and no more. What a drafter does
for later drafts alone, such as a search, is paid from the same account.

Prices: verification is `Target.costs` of the draft's size, measured when the guard is made and free of the noise of
other work on the machine; the time that the drafter itself takes, its forwards included, is clocked. In a batch a row
is charged its share, as though the others' drafts were as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, Step

STOOD_DOWN = "stood down"  # the source of the empty drafts of steps that the guard decided against
BUDGET = 0.01  # share of the time decoded that goes into trying again
CREDIT = 2.0  # plain steps that the account holds at first, and at most
MEMORY = 0.8  # weight of a request's earlier drafts in its prediction, with every further draft


@dataclass
class Watch:
    """What the guard remembers of one request.

    Attributes:
        inner: the memory of the drafter within.
        tokens, seconds: of its recent drafted steps, fading.
        spent: seconds that drafting for the present step took; None where the drafter was not asked.
    """

    inner: Any = None
    tokens: float = 0.0
    seconds: float = 0.0
    spent: float | None = None

    def pays(self, plain_s: float) -> bool:
        """Whether recent drafts gave at least a token in the time of a plain step; not known before the first."""
        return self.seconds > 0 and self.tokens * plain_s >= self.seconds


class Guard(Drafter):
    """Around `inner`, whose options and states stay its own. The account is the machine's, kept over all requests."""

    def __init__(self, inner: Drafter, clock: Callable[[], float] = time.perf_counter) -> None:
        """Take a drafter.

        Args:
            clock: seconds; tests give their own.
        """
        super().__init__(inner.target, inner.config)
        self.inner, self.clock = inner, clock
        self.costs, self.best = inner.target.costs, inner.best
        self.balance = CREDIT * self.costs(1)

    def start(self, context: Context) -> None:
        """A request of which nothing is known."""
        self.inner.start(context)
        context.memory = Watch(context.memory)

    def propose(self, context: Context) -> Draft:
        """The inner drafter's draft, or none."""
        return self.propose_batch([context])[0]

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """The inner drafter is asked for all requests that may draft at once."""
        going = [c for c in contexts if self.balance >= 0 or c.memory.pays(self._plain_s(c))]
        drafts = {}
        if going:
            begin = self.clock()
            views = [replace(c, memory=c.memory.inner) for c in going]
            drafts = {c.row: draft for c, draft in zip(going, self.inner.propose_batch(views), strict=True)}
            share = (self.clock() - begin) / len(going)
            for context, view in zip(going, views, strict=True):
                context.memory.inner, context.memory.spent = view.memory, share
        stood_down = Draft(TokenTree.empty(), STOOD_DOWN)
        return [drafts.get(c.row, stood_down) for c in contexts]

    def diagnostics(self, context: Context) -> dict[str, list[int]]:
        """The inner drafter's."""
        return self.inner.diagnostics(replace(context, memory=context.memory.inner))

    def observe(self, context: Context, step: Step) -> None:
        """Settle up, and let the inner drafter see the step, its own or a plain one."""
        watch: Watch = context.memory
        view = replace(context, memory=watch.inner)
        begin = self.clock()
        self.inner.observe(view, step)
        watch.inner = view.memory
        tokens, size, plain_s = len(step.emitted), len(step.draft.tree), self._plain_s(context)
        earned = BUDGET * tokens * plain_s
        if watch.spent is not None:
            seconds = watch.spent + self.clock() - begin + self.costs.shared_by(context.rows)(size + 1)
            earned += tokens * plain_s - seconds
            if size or step.draft.target_forwards:
                watch.tokens = MEMORY * watch.tokens + tokens
                watch.seconds = MEMORY * watch.seconds + seconds
            else:  # that a lookup found nothing says nothing of what it finds, but looking has its price
                watch.seconds += max(seconds - tokens * plain_s, 0.0)
        watch.spent = None
        self.balance = min(self.balance + earned, CREDIT * plain_s)

    def explore(self, context: Context) -> None:
        """The inner drafter explores while the account is not overdrawn."""
        if self.balance < 0:
            return
        view = replace(context, memory=context.memory.inner)
        begin = self.clock()
        self.inner.explore(view)
        context.memory.inner = view.memory
        self.balance -= self.clock() - begin

    def _plain_s(self, context: Context) -> float:
        """What a step of a request costs without a draft."""
        return self.costs.shared_by(context.rows)(1)
