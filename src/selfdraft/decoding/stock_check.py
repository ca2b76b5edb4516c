"""Check a text against the stock model: our logits must equal those of its own forward, and the tokens its choices.

A comparison of a drafter with our own plain decoding cannot show a fault that both share: in the cache, the masks, the
positions or the parts of the model. The stock forward uses none of our code for these, so it shows such faults.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from selfdraft.core.certificate import margin_control
from selfdraft.core.rounding import Ceiling, distance, expected
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.stretches import Stretch, StretchReader
from selfdraft.models.families.anatomy import text_config
from selfdraft.models.forward.target import Target
from selfdraft.models.reference.float32 import Float32Reference
from selfdraft.models.reference.stock_forward import StockForward

STRETCH = 128  # the most tokens that are compared at once, to bound the size of the (n, V) logits
LEAST = 32  # the fewest tokens that are compared in all; a short answer is compared together with the prompt's end


class Measure(NamedTuple):
    """A measured value, and its ceiling: the largest value that rounding can cause."""

    value: float
    ceiling: float

    @property
    def excess(self) -> float:
        """Return the ratio of the value to its ceiling; infinite for NaN."""
        part = self.value / self.ceiling
        return math.inf if math.isnan(part) else part


@dataclass(frozen=True)
class Gap:
    """A token of an answer that the stock model would not have written.

    Attributes:
        index: into the answer.
        margin: how many logits the token is below the best one, by the stock model in float32; above 0.
        written: the token.
        best: the token that the model would have written.
    """

    index: int
    margin: float
    written: int
    best: int


@dataclass
class Checked:
    """The result of comparing a text, stretch by stretch.

    Attributes:
        distance: the distance between our forwards and the stock model's in the worst stretch, in sigmas.
        control: the largest change of a margin between the two in the worst stretch, in logits.
        gaps: the tokens of the answer that the stock model would not have written.
    """

    distance: Measure
    control: Measure
    gaps: list[Gap]

    @property
    def excess(self) -> float:
        """Return the larger ratio of a measure to its ceiling; above 1, rounding does not explain the difference."""
        return max(self.distance.excess, self.control.excess)


class StockCheck:
    """Compares texts with the stock model's forward in float32; in a narrower dtype, with that of a float32 copy.

    Attributes:
        stock: the model's own forward.
        narrow: whether the model's dtype is narrower than float32.
    """

    def __init__(self, target: Target, rule: NextToken) -> None:
        self.target, self.rule = target, rule
        self.stock, self._float32 = StockForward(target.model), Float32Reference(target.model)
        self.narrow = target.dtype != torch.float32
        self._usual = expected(torch.float32, len(target.full.layers), int(text_config(target.model).hidden_size))

    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> Checked:
        """Compare an answer of at least one token to a prompt.

        If they differ by more than rounding usually does, they are compared again in the other ways of `stretches`:
        with one routing for all forwards, then with the rounding that the stock model shows when it takes the text in
        steps.
        """
        text = [*prompt, *answer[:-1]]
        bounds = self._bounds(len(prompt) - 1, len(text))
        looks = StretchReader(self.target, self.stock, self.truth if self.narrow else None, len(prompt))
        found = self._compared(prompt, answer, bounds, looks.plain(text, bounds))
        for look in (looks.with_one_routing, looks.with_steps):
            if found.excess <= 1 or self.stock.depends_on_length:
                break
            if (again := look(text, bounds)) is not None:
                first_gaps, found = found.gaps, self._compared(prompt, answer, bounds, again)
                found.gaps = _in_both(first_gaps, found.gaps)
        return found

    def _compared(
        self, prompt: Sequence[int], answer: Sequence[int], bounds: Sequence[int], read: Iterable[Stretch]
    ) -> Checked:
        """Return what the stretches of a text show."""
        text, begin = [*prompt, *answer[:-1]], len(prompt) - 1
        distances, margins, gaps = [], [], []
        for (first, end), stretch in zip(pairwise(bounds), read, strict=True):
            apart = distance(stretch.ours, stretch.truth)
            ceiling = Ceiling.reckoned(self._usual, apart.sigma)
            if stretch.rounded:
                noise = max((distance(*pair) for pair in stretch.rounded), key=attrgetter("sigmas"))
                measured = Ceiling.measured(noise, self._usual)
                ceiling = measured if self.narrow else ceiling.or_larger(measured)
            pairs = [(stretch.ours, stretch.truth), *stretch.rounded]
            distances.append(Measure(apart.sigmas, ceiling.sigmas))
            margins += [Measure(margin_control(truth, logits), ceiling.margin) for logits, truth in pairs]
            if not self.rule.sample:
                gaps += _gaps(self._scores(stretch.truth, text[:end], first, len(prompt)), answer, first - begin)
        worst = attrgetter("excess")
        return Checked(max(distances, key=worst), max(margins, key=worst), gaps)

    def gaps(self, prompt: Sequence[int], answer: Sequence[int], ends: frozenset[int] = frozenset()) -> list[Gap]:
        """Return the tokens of an answer that the stock model would not have written, by its own forward alone.

        Args:
            ends: if there are any, one of these tokens should follow the answer: the best of them is checked like a
                further token.
        """
        if not (answer or ends):
            return []
        answer, choices = list(answer), sorted(ends)
        text, begin, found = [*prompt, *answer] if ends else [*prompt, *answer[:-1]], len(prompt) - 1, []
        bounds = self._bounds(begin, len(text))
        truths = self.truth.stretches(text, len(prompt), bounds)
        for (first, end), truth in zip(pairwise(bounds), truths, strict=True):
            scores = self._scores(truth, text[:end], first, len(prompt))
            if ends and end == len(text):
                answer.append(choices[int(scores[-1][choices].argmax())])
            found += _gaps(scores, answer, first - begin)
        return found

    def margin(self, prompt: Sequence[int], answer: Sequence[int], gap: Gap) -> float:
        """Return the margin of a gap by the stock model in its own dtype; negative if it prefers the token written."""
        begin, at = len(prompt) - 1, len(prompt) - 1 + gap.index
        text = [*prompt, *answer[: gap.index]]
        bounds = sorted({begin, at, at + 1}) if self.stock.depends_on_length else [at, at + 1]
        *_, logits = self.stock.stretches(text, len(prompt), bounds)
        scores = self._scores(logits, text, at, len(prompt))[0].float()
        return float(scores[gap.best] - scores[gap.written])

    def _scores(self, logits: Tensor, text: Sequence[int], first: int, prompt_length: int) -> Tensor:
        """Return (n, V) scores by the rule for the logits after the tokens of `text` from `first` on."""
        return self.rule.scores(logits, text[: first + 1], prompt_length, TokenTree.chain(text[first + 1 :]))

    @property
    def truth(self) -> StockForward:
        """Return the stock forward in float32."""
        return self._float32.stock if self.narrow else self.stock

    def _bounds(self, begin: int, end: int) -> list[int]:
        """Return bounds of stretches of about the same length, from the prompt's last token (or before) to the end."""
        if not self.stock.depends_on_length:
            begin = max(min(begin, end - LEAST), 0)
        count = -(-(end - begin) // STRETCH)
        return [begin + (end - begin) * i // count for i in range(count + 1)]


def _in_both(gaps: Sequence[Gap], others: Sequence[Gap]) -> list[Gap]:
    """Return the gaps at tokens that neither of two right forwards of the stock model would have written.

    For each of these tokens, the gap with the smaller margin is returned.
    """
    found = {gap.index: gap for gap in others}
    both = ((gap, found[gap.index]) for gap in gaps if gap.index in found)
    return [min(pair, key=attrgetter("margin")) for pair in both]


def _gaps(scores: Tensor, answer: Sequence[int], offset: int) -> list[Gap]:
    """Return the written tokens that are below the best one.

    Args:
        scores: (n, V) scores of the stock model.
        answer: the whole answer.
        offset: index of the answer's token that the first row chooses; negative for tokens of the prompt.
    """
    scores, offset = scores[max(-offset, 0) :].float(), max(offset, 0)
    if not len(scores):
        return []
    written = torch.tensor(answer[offset : offset + len(scores)], device=scores.device)
    best = scores.max(-1)
    lost = (best.values - scores.gather(-1, written[:, None])[:, 0]).tolist()
    each = enumerate(zip(lost, written.tolist(), best.indices.tolist(), strict=True))
    return [Gap(offset + i, margin, token, better) for i, (margin, token, better) in each if not margin <= 0]
