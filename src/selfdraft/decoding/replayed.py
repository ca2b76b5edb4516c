"""Replay a drafter against recorded texts, without the model: what would it draft, and how much of that is right?

1. `Recorder` decodes plainly, and keeps the model's best tokens at every position: `recorded` makes a `Recording`.
2. `Replayer` runs a drafter over each text as `decoding/loop.py` does. The recorded text says which nodes are accepted.
3. `Rates` turns the trees into seconds, by the measured cost of forwards and the measured time of the drafter.

At nodes on the text the model's answers are known. At other nodes they are not: there `Continuations` answers with what
the model predicted after the same last tokens elsewhere. Drafters that learn nothing from wrong nodes (`prompt_lookup`,
`suffix`) are replayed exactly; for others a replay is an estimate.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from selfdraft.core.acceptance import accept_greedy
from selfdraft.core.costs import CostCurve
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.record import Generation
from selfdraft.drafters.base import Context, Draft, Drafter, Step
from selfdraft.drafters.none import NoDrafter
from selfdraft.models.forward.protocol import TargetProtocol

ORDER = 3  # the longest context, in tokens, after which predictions are looked up for nodes off the text
Row = tuple[list[int], list[float]]  # the model's k best tokens at a position, the best first, and their chances


@dataclass(frozen=True)
class Recording:
    """A text that plain decoding wrote.

    Attributes:
        output: (n,) the answer. `room` more tokens than the first were allowed.
        best: at least n - 1 rows of the k best tokens; row i has those from which ``output[i]`` was chosen.
    """

    prompt: Sequence[int]
    output: Sequence[int]
    room: int
    best: Sequence[Row]


class Recorder(NoDrafter):
    """Drafts nothing, and keeps the best tokens that it observes."""

    def __init__(self, drafter: Drafter, best: int) -> None:
        """Record `best` tokens at each position, on the target of `drafter`, which is plain decoding's."""
        super().__init__(drafter.target, NoDrafter.Config(), drafter.costs)
        self.best = max(best, 1)
        self.rows: WeakKeyDictionary[Context, list[Row]] = WeakKeyDictionary()
        self.last: list[Row] = []

    def start(self, context: Context) -> None:
        """Begin a text."""
        self.last = self.rows[context] = []

    def observe(self, context: Context, step: Step) -> None:
        """Keep the best tokens after the root."""
        assert step.best is not None, "`best` asks for it"
        self.rows[context].append((step.best[0, 0].long().tolist(), step.best[1, 0].tolist()))

    def recorded(self, answer: Generation, room: int) -> Recording:
        """Return the recording of the text that was decoded last."""
        return Recording(answer.prompt, answer.output, room, self.last)


class Continuations:
    """Guesses what the model would predict after a text that it never saw, from its predictions after its last tokens.

    A context of three tokens counts more than one of two, and that more than one; the prompts' own tokens count as
    predictions. If nothing is known, the tokens that were predicted most often are the answer.
    """

    def __init__(self, recordings: Iterable[Recording], best: int) -> None:
        """Learn all positions of the recordings; answers have `best` tokens."""
        self._rows: dict[tuple[int, ...], Row] = {}
        counts: Counter[int] = Counter()
        for recording in recordings:
            self.read_prompt(recording.prompt)
            for at in range(len(recording.best)):
                self.read(recording, at)
            counts.update(tokens[0] for tokens, _ in recording.best)
        frequent = [token for token, _ in counts.most_common(best)]
        unused = (token for token in range(2 * best) if token not in frequent)
        self._any: Row = [*frequent, *(next(unused) for _ in range(best - len(frequent)))], [1 / best] * best

    def read_prompt(self, prompt: Sequence[int]) -> None:
        """Learn which token follows which in a prompt."""
        for end in range(1, len(prompt)):
            self._learn(prompt[max(end - ORDER, 0) : end], ([prompt[end]], [1.0]))

    def read(self, recording: Recording, at: int) -> None:
        """Learn the predictions from which token `at` of an answer was chosen."""
        begins = max(at - ORDER, 0)
        before = [*recording.prompt[-ORDER:], *recording.output[begins:at]][-ORDER:]
        self._learn(before, recording.best[at])

    def after(self, context: tuple[int, ...], best: int) -> Row:
        """Return the `best` likeliest tokens after a context of up to `ORDER` tokens, without repetitions."""
        for first in range(len(context)):
            if (row := self._rows.get(context[first:])) is not None:
                return _filled(row, self._any, best)
        return _filled(self._any, self._any, best)

    def _learn(self, before: Sequence[int], row: Row) -> None:
        for first in range(len(before)):
            self._rows[tuple(before[first:])] = row


def _filled(row: Row, others: Row, best: int) -> Row:
    """Return the first `best` tokens of a row, its chances renormalised; missing ones are taken from another row."""
    tokens, chances = row[0][:best], row[1][:best]
    total = sum(chances)
    more = [token for token in others[0] if token not in tokens][: best - len(tokens)]
    return [*tokens, *more], [*(chance / total for chance in chances), *([0.0] * len(more))]


@dataclass
class Replayed:
    """What a drafter would have done along recorded texts.

    Attributes:
        tokens: emitted tokens.
        sizes: of each step, the tokens of its forward, the root included.
        draft_s: seconds in which the drafter proposed and observed.
    """

    tokens: int = 0
    sizes: list[int] = field(default_factory=list)
    draft_s: float = 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Return emitted tokens per forward of the target."""
        return self.tokens / max(len(self.sizes), 1)


class Replayer:
    """Runs drafters over recorded texts, one request at a time, greedily."""

    def __init__(
        self,
        target: TargetProtocol,
        recordings: Sequence[Recording],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take the texts; only the limits of `target` are read."""
        self.target, self.recordings, self.clock = target, recordings, clock

    @torch.inference_mode()
    def replay(self, drafter: Drafter) -> Replayed:
        """Return what `drafter` would have done. It must not run the model, and its warm state is changed."""
        done, best = Replayed(), max(drafter.best, 1)
        for recording in self.recordings:
            others = [other for other in self.recordings if other is not recording]
            continuations = Continuations(others, best)
            continuations.read_prompt(recording.prompt)
            self._text(drafter, recording, continuations, done)
        return done

    def _text(self, drafter: Drafter, recording: Recording, continuations: Continuations, done: Replayed) -> None:
        context = Context(0, list(recording.prompt), len(recording.prompt), recording.room, np.random.default_rng(0))
        begun = self.clock()
        drafter.start(context)
        done.draft_s += self.clock() - begun
        written = 0
        while written < len(recording.output):
            begun = self.clock()
            draft = self._usable(drafter.propose(context), context)
            done.draft_s += self.clock() - begun
            predictions, best = self._answers(recording, written, context, draft.tree, continuations, drafter.best)
            accepted = accept_greedy(draft.tree, predictions)
            emitted = [*draft.tree.tokens[list(accepted.nodes)].tolist(), accepted.bonus]
            emitted = emitted[: len(recording.output) - written]
            for at in range(written, min(written + len(emitted), len(recording.best))):
                continuations.read(recording, at)
            written += len(emitted)
            context.tokens += emitted
            context.room -= len(emitted)
            done.tokens += len(emitted)
            done.sizes.append(1 + len(draft.tree))
            if written < len(recording.output):
                step = Step(draft, torch.empty(0), predictions, accepted.nodes, tuple(emitted), best=best)
                begun = self.clock()
                drafter.observe(context, step)
                drafter.explore(context)
                done.draft_s += self.clock() - begun

    def _usable(self, draft: Draft, context: Context) -> Draft:
        """Return the part of a draft that the loop would verify."""
        draft = draft.up_to_depth(context.room)
        if self.target.chains_only and not draft.tree.is_chain:
            draft = draft.restricted_to(draft.tree.first_branch())
        return draft

    def _answers(
        self,
        recording: Recording,
        written: int,
        context: Context,
        tree: TokenTree,
        continuations: Continuations,
        best: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (n + 1,) predictions after the root and each node, and (2, n + 1, best) the best tokens there."""
        output, depths = recording.output, [0, *tree.depths.tolist()]
        before = [tuple(context.tokens[-ORDER:])]
        on_text, rows = [True], []
        for node, (parent, token) in enumerate(zip(tree.parent_list, tree.tokens.tolist(), strict=True)):
            before.append((*before[parent + 1][1 - ORDER :], token))
            at = written + depths[node + 1] - 1
            on_text.append(on_text[parent + 1] and at < len(output) and output[at] == token)
        predictions = []
        for follows, depth, last in zip(on_text, depths, before, strict=True):
            at = written + depth
            known = follows and at < len(recording.best)
            row = recording.best[at] if known else continuations.after(last, max(best, 1))
            predictions.append(output[at] if follows and at < len(output) else row[0][0])
            rows.append(_filled(row, continuations.after((), len(row[0])), best) if best else row)
        found = torch.tensor([[tokens for tokens, _ in rows], [chances for _, chances in rows]]) if best else None
        return torch.tensor(predictions), None if found is None else found.double()


@dataclass(frozen=True)
class Rates:
    """The seconds of a step besides drafting.

    Attributes:
        step: seconds of a forward of so many tokens, with committing and bookkeeping.
        best: seconds of finding the best tokens at so many positions; None for drafters that want none.
    """

    step: CostCurve
    best: CostCurve | None = None

    def speedup(self, done: Replayed) -> float:
        """Return the predicted speedup over plain decoding of the same tokens."""
        seconds = done.draft_s
        for size, count in Counter(done.sizes).items():
            seconds += count * (self.step(size) + (self.best(size) if self.best is not None else 0.0))
        return done.tokens * self.step(1) / seconds
