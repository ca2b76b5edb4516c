"""The guard: a drafter around another one, which stops it while drafting makes decoding slower (decoding.guard=true).

1. *Prediction*: a request drafts on while its own recent drafts gave more tokens per second than plain decoding.
2. *Balance*: otherwise it may try again only if there is time to spend. An account holds that time: seconds that drafts
   gain go in (up to a small limit), seconds that they lose come out, and a share `BUDGET` of the decoding time goes in.

So a drafter that never pays costs no more than that share and the first few tries. Work that only helps later drafts,
such as a search, is paid from the same account.

Costs: a verification costs what a full forward of the draft's size costs, measured when the guard is made and free of
the noise of other work on the machine. The drafter's own time, its forwards included, is measured by the clock. In a
batch, a row is charged its share, as if the other rows' drafts were as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, Step

PAUSED = "stood down"  # the recorded source of steps without a draft because the guard pauses drafting
BUDGET = 0.01  # share of the decoding time that may be spent on trying again
CREDIT = 2.0  # the account's first and highest balance, in steps of plain decoding
DECAY = 0.8  # each further draft multiplies the weight of a request's earlier drafts in its prediction by this


@dataclass
class Watch:
    """The guard's state for one request.

    Attributes:
        tokens, seconds: sums over the request's recent drafted steps, weighted by `DECAY`.
        spent: seconds that drafting for the present step took; None if the drafter was not asked.
    """

    tokens: float = 0.0
    seconds: float = 0.0
    spent: float | None = None

    def pays(self, plain_s: float) -> bool:
        """Return whether recent drafts gave at least one token per time of a plain step; False before the first."""
        return self.seconds > 0 and self.tokens * plain_s >= self.seconds


class Guard(Drafter):
    """Lets `inner` draft where that pays. One account serves all requests."""

    def __init__(self, inner: Drafter, clock: Callable[[], float] = time.perf_counter) -> None:
        """Guard a drafter.

        Args:
            inner: the drafter to guard.
            clock: returns seconds; tests pass their own.
        """
        super().__init__(inner.target, inner.config, inner.costs)
        self.inner, self.clock, self.best, self.said = inner, clock, inner.best, inner.said
        self.curve = inner.costs.full()
        self.balance = CREDIT * self.curve(1)
        self.watched: WeakKeyDictionary[Context, Watch] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin a request, with no recent drafts."""
        self.inner.start(context)
        self.watched[context] = Watch()

    def propose(self, context: Context) -> Draft:
        """Return the inner drafter's draft, or an empty one."""
        return self.propose_batch([context])[0]

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """Return the inner drafter's drafts, made together, for requests that may draft; empty ones for the others."""
        going = [c for c in contexts if self.balance >= 0 or self.watched[c].pays(self._plain_s(c))]
        drafts = {}
        if going:
            begin = self.clock()
            drafts = {c.row: draft for c, draft in zip(going, self.inner.propose_batch(going), strict=True)}
            share = (self.clock() - begin) / len(going)
            for context in going:
                self.watched[context].spent = share
        paused = Draft(TokenTree.empty(), PAUSED)
        return [drafts.get(c.row, paused) for c in contexts]

    def diagnostics(self, context: Context) -> dict[str, list[int]]:
        """Return the inner drafter's diagnostics."""
        return self.inner.diagnostics(context)

    def iterates(self, context: Context) -> list[tuple[int, int, list[int]]]:
        """Return the inner drafter's iterates."""
        return self.inner.iterates(context)

    def observe(self, context: Context, step: Step) -> None:
        """Let the inner drafter observe the step, drafted or plain, and book the seconds gained or lost."""
        watch = self.watched[context]
        begin = self.clock()
        self.inner.observe(context, step)
        tokens, size, plain_s = len(step.emitted), len(step.draft.tree), self._plain_s(context)
        earned = BUDGET * tokens * plain_s
        if watch.spent is not None:
            seconds = watch.spent + self.clock() - begin + self.curve.shared_by(context.rows)(size + 1)
            earned += tokens * plain_s - seconds
            if size or step.draft.target_forwards:
                watch.tokens = DECAY * watch.tokens + tokens
                watch.seconds = DECAY * watch.seconds + seconds
            else:  # an empty draft says nothing about acceptance; charge only its time
                watch.seconds += max(seconds - tokens * plain_s, 0.0)
        watch.spent = None
        self.balance = min(self.balance + earned, CREDIT * plain_s)

    def explore(self, context: Context) -> None:
        """Let the inner drafter explore while the account is not overdrawn."""
        if self.balance < 0:
            return
        begin = self.clock()
        self.inner.explore(context)
        self.balance -= self.clock() - begin

    def settle(self) -> None:
        """Let the inner drafter settle. No request waits for it, so the account does not pay."""
        self.inner.settle()

    def _plain_s(self, context: Context) -> float:
        """Return the seconds that a request's step costs without a draft."""
        return self.curve.shared_by(context.rows)(1)
