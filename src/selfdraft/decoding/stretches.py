"""Compute the logits that a check of a text compares, for one stretch of it at a time, so that memory stays small.

For each stretch there are our logits, the stock model's, and the *truth*: the stock model's in float32, by a forward of
the whole text. A text is checked in up to three ways, which differ in what rounding may excuse. Each measures the
effect of rounding by forwards that are not ours.

1. Plain: the effect is calculated in float32; in a narrower dtype, it is that of the stock model's own forward.
2. With one routing: forwards of a mixture of experts may differ because rounding decided which experts a token has
   (see `routing`). So the truth is made to take the experts of the forward that it is compared with. If the two still
   differ, routing is not the reason. This would excuse a router that is wrong, so only a small share of all choices may
   differ.
3. With steps: the stock model takes the text in steps, as it does in `generate`.

Shapes: n tokens of a stretch, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from selfdraft.core.rounding import AS_FAR, NARROW_STEPS, STEPS, distance
from selfdraft.decoding.forcing import ForcedText
from selfdraft.models.families.routing import Forced, Notes, forced, mixtures
from selfdraft.models.forward.target import Target
from selfdraft.models.reference.stock_forward import StockForward

REROUTED = 0.05  # largest share of the choices of experts in which two forwards may differ
SIZES = (1, 8)  # numbers of tokens in a step that are tried


@dataclass
class Stretch:
    """Logits of one stretch of a text, (n, V) each.

    Attributes:
        rounded: pairs of logits of the stock model that differ by rounding only; the second of a pair is the truth.
    """

    ours: Tensor
    truth: Tensor
    rounded: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class StretchReader:
    """Reads the stretches of texts with the same length of the prompt."""

    def __init__(self, target: Target, stock: StockForward, wide: StockForward | None, prompt_length: int) -> None:
        """Take a target and its stock model.

        Args:
            wide: the stock model's float32 copy; None: its dtype is float32.
        """
        self.target, self.stock, self.wide, self.prompt_length = target, stock, wide, prompt_length
        self.truth = wide or stock

    def plain(self, text: Sequence[int], bounds: Sequence[int]) -> Iterator[Stretch]:
        """Yield every stretch for the first way: plain."""
        ours = ForcedText(self.target, text, self.prompt_length).stretches(bounds)
        truths = self.truth.stretches(text, self.prompt_length, bounds)
        narrow: Iterable[Tensor | None] = itertools.repeat(None, len(bounds) - 1)
        if self.wide is not None:
            narrow = self.stock.stretches(text, self.prompt_length, bounds)
        for mine, truth, stock in zip(ours, truths, narrow, strict=True):
            yield Stretch(mine, truth, [] if stock is None else [(stock, truth)])

    def with_one_routing(self, text: Sequence[int], bounds: Sequence[int]) -> list[Stretch] | None:
        """Return every stretch for the second way: with one routing; None if that would excuse too much."""
        wide, parts = mixtures([self.truth.model]), self.target.mixtures()
        if not wide or len(wide) != len(parts):
            return None
        with Notes(parts) as notes:
            ours = list(ForcedText(self.target, text, self.prompt_length, notes).stretches(bounds))
        mine, by_us, by_stock, stretches = notes.routing(), Forced(), Forced(), []
        if any(len(experts) != len(text) for experts, _ in mine.chosen):  # a token went missing
            return None
        for logits, (first, end) in zip(ours, pairwise(bounds), strict=True):
            with forced(wide, mine.first(end), by_us):
                (truth,) = self.truth.stretches(text, self.prompt_length, [first, end])
            stretch = Stretch(logits, truth)
            if self.wide is not None:
                with Notes(mixtures([self.stock.model])) as notes:
                    (narrow,) = self.stock.stretches(text, self.prompt_length, [first, end])
                notes.keep()
                with forced(wide, notes.routing(), by_stock):
                    (truth,) = self.truth.stretches(text, self.prompt_length, [first, end])
                stretch.rounded.append((narrow, truth))
            stretches.append(stretch)
        return stretches if by_us.share <= max(REROUTED, AS_FAR * by_stock.share) else None

    def with_steps(self, text: Sequence[int], bounds: Sequence[int]) -> list[Stretch] | None:
        """Return every stretch for the third way: with steps; None if these differ by more than rounding."""
        stretches, most = list(self.plain(text, bounds)), STEPS if self.wide is None else NARROW_STEPS
        for size in SIZES:
            for stretch, steps in zip(stretches, self.stock.in_steps(text, bounds, size), strict=True):
                if not distance(steps, stretch.truth).sigmas < most:
                    return None
                stretch.rounded.append((steps, stretch.truth))
        return stretches
