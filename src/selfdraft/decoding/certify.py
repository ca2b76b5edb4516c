"""Certify a drafter's output: is it the text of plain decoding, or does it differ only where rounding decides?

1. Check the baseline's text (plain decoding) against the stock model's own forward of it. Our logits may differ by no
   more than rounding, and the tokens must be those that the stock model would choose (see `stock_check`).
2. If the drafter's text differs, look at the first token that differs. It is a tie if the margin between the two tokens
   is within the *control*: the largest change of a margin that rounding makes in this text.
3. Unless that is a mismatch, check the drafter's text as in step 1.

Everything is measured on the text that is judged: measurements on one text never excuse another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

from torch import Tensor

from selfdraft.core.certificate import (
    Certificate,
    first_divergence,
    judge,
    largest,
    margin_control,
    recheck,
    spread_of_changes,
)
from selfdraft.core.rounding import AS_FAR
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.stock_check import Gap, StockCheck
from selfdraft.models.forward.target import Target
from selfdraft.models.reference.teacher_forced import teacher_forced_in

CONTROL_BLOCKS = (2, 4, 8, 16)  # sizes of forwards that are compared with forwards of one token: those of usual drafts
WINDOW = 16  # tokens, up to the first that differs, on which the control is measured at first
WIDEST = 256  # tokens on which it is measured at last: the whole answer, and the end of the prompt if that is shorter
SPANS = (
    3  # number of stretches whose scores are kept: several contenders that differ from a text are judged by the same
)
KEPT = 512  # number of texts whose check is cached, because repeats, drafters and references share baselines


class Certifier:
    """Compares outputs with the stock model's own forward and with the autoregressive output."""

    def __init__(self, target: Target, rule: NextToken | None = None, *, batch_size: int = 1) -> None:
        """Prepare to certify outputs of a target.

        Args:
            rule: the sampling rule of the outputs. Sampled outputs may differ from each other without a fault.
            batch_size: number of rows that were decoded at once, by drafter and baseline alike. A step of B rows
                multiplies matrices by up to B times as many tokens, so the control includes blocks of that size.
        """
        self.target, self.rule = target, rule or NextToken()
        self.blocks = sorted({*CONTROL_BLOCKS, *(batch_size * k for k in (1, *CONTROL_BLOCKS))} - {1})
        self._beside_stock = StockCheck(target, self.rule)
        self._check = lru_cache(maxsize=KEPT)(self._beside_stock)
        self._again = lru_cache(maxsize=SPANS)(self._forced)

    def certify(self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int]) -> Certificate:
        """Return the certificate of a drafter's output."""
        of_baseline = self.by_stock(prompt, baseline)
        if of_baseline.verdict == "mismatch":
            return of_baseline
        parting = self.compare(prompt, output, baseline)
        if parting.verdict in ("tie", "sampled"):  # after the divergence, the baseline's check does not cover it
            drafted = self.by_stock(prompt, output)
            if drafted.verdict == "mismatch":
                return drafted
        return replace(parting, distance=of_baseline.distance, ceiling=of_baseline.ceiling)

    def by_stock(self, prompt: Sequence[int], output: Sequence[int]) -> Certificate:
        """Return the certificate of one text by itself: `exact`, or a mismatch with the stock model's forward."""
        found = self.by_stock_with_ties(prompt, output)
        if found.verdict == "tie":
            return Certificate("exact", distance=found.distance, ceiling=found.ceiling)
        return found

    def by_stock_with_ties(self, prompt: Sequence[int], output: Sequence[int]) -> Certificate:
        """Return the same; but `tie` where the stock model would have written another token, within rounding.

        The certificate of a tie has the largest margin among the tokens that it would not have written. That of a
        mismatch has the margin of the first token which rounding does not explain.
        """
        if not output:
            return Certificate("exact")
        checked = self._check(tuple(prompt), tuple(output))
        measures: dict[str, Any] = {"distance": checked.distance.value, "ceiling": checked.distance.ceiling}
        if checked.distance.excess > 1:
            return Certificate("mismatch", reason="forward", **measures)
        control, ceiling = checked.control
        if checked.control.excess > 1:
            return Certificate("mismatch", control=control, reason="control", **measures)
        if not checked.gaps:
            return Certificate("exact", **measures)
        worst = max(checked.gaps, key=attrgetter("margin"))
        certificate = judge(worst.index, worst.margin, control, ceiling, "stock")
        for first, last in self._spans(len(prompt), len(output), worst.index):
            if certificate.verdict == "tie" or self._beyond_rounding(prompt, output, worst.margin):
                break
            stock = self._by_stock_model(prompt, output, first, last)
            found = (margin_control(stock, ours) for ours in self._by_us(prompt, output, first, last))
            control = largest([control, *found])
            certificate = judge(worst.index, worst.margin, control, ceiling, "stock")
        if certificate.reason == "stock":
            certificate = self._gap_by_gap(prompt, output, checked.gaps, control)
        return replace(certificate, **measures)

    def _gap_by_gap(
        self, prompt: Sequence[int], output: Sequence[int], gaps: Sequence[Gap], control: float
    ) -> Certificate:
        """Judge each gap by the rounding of its own two tokens, where the control does not explain it.

        Returns:
            A mismatch with the first gap that rounding does not explain; else a tie with the gap of the largest margin.
        """
        ceiling = self._check(tuple(prompt), tuple(output)).control.ceiling
        explained = [control]
        for gap in gaps:  # each by its own tokens: what is measured for one gap excuses no other
            if not gap.margin <= control:
                allowed = self.allowance(prompt, output, gap)
                if not gap.margin <= allowed:
                    return judge(gap.index, gap.margin, largest([control, allowed]), ceiling, "stock")
                explained.append(allowed)
        worst = max(gaps, key=attrgetter("margin"))
        return judge(worst.index, worst.margin, largest(explained), ceiling, "stock")

    def gaps(self, prompt: Sequence[int], output: Sequence[int], ends: frozenset[int] = frozenset()) -> list[Gap]:
        """Return the tokens of a text that the stock model would not have written (see `StockCheck.gaps`)."""
        return self._beside_stock.gaps(prompt, output, ends)

    def allowance(self, prompt: Sequence[int], output: Sequence[int], gap: Gap) -> float:
        """Return the largest margin of a gap that rounding explains, in logits, measured on its two tokens.

        The control is measured on the two best tokens of every place, and the written token may be neither. So the
        change of this very margin is measured: by the stock model in its dtype, and by our forwards of one token and of
        several. An audited engine rounds in its own way, which may move logits up to `AS_FAR` times as far.
        """
        ceiling, at = self._check(tuple(prompt), tuple(output)).control.ceiling, len(prompt) - 1 + gap.index
        if gap.margin > ceiling:
            return ceiling
        first = len(prompt) - 1 if self._beside_stock.stock.depends_on_length else max(at - WINDOW + 1, 0)
        scores = [each[-1].float() for each in self._by_us(prompt, output[: gap.index], first, at)]
        margins = [float(each[gap.best] - each[gap.written]) for each in scores]
        if (narrow := self.margin_in_dtype(prompt, output, gap)) is not None:
            margins.append(narrow)
        return min(AS_FAR * largest(abs(margin - gap.margin) for margin in margins), ceiling)

    def margin_in_dtype(self, prompt: Sequence[int], output: Sequence[int], gap: Gap) -> float | None:
        """Return the margin of a gap by the stock model in its own dtype; None if that is float32, like the gap's."""
        return self._beside_stock.margin(prompt, output, gap) if self._beside_stock.narrow else None

    def compare(self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int]) -> Certificate:
        """Return the verdict on the first token at which an output differs from the baseline.

        The baseline's text is forwarded again, token by token and in blocks of k. The margin comes from the
        forwards of one token; the control is the largest change of a margin in the blocks. The last `WINDOW`
        tokens usually suffice for a tie. But a dozen tokens do not show the largest effect of rounding. So
        before a mismatch is declared, the whole answer is measured, at about ten times the cost, and for a
        short answer the end of its prompt too. In a dtype narrower than float32, the float32 copy of the model
        then decides each tie again. A margin that is above the ceiling needs no more measurements. In a batch
        the baseline rounds as well, so its token too may lose to the best one by up to the control.
        """
        index = first_divergence(output, baseline)
        if index is None:
            return Certificate("exact")
        if self.rule.sample:
            return Certificate("sampled", index)
        if index >= min(len(output), len(baseline)):  # one goes on where the other ended; rounding cannot cause that
            return Certificate("mismatch", index, reason="length")
        certificate = Certificate("mismatch", index)
        for first, last in self._spans(len(prompt), len(baseline), index):
            certificate = self._judge(prompt, output, baseline, index, first, last)
            if certificate.verdict == "tie" or self._beyond_rounding(prompt, baseline, certificate.margin):
                break
        return certificate

    def _beyond_rounding(self, prompt: Sequence[int], text: Sequence[int], margin: float | None) -> bool:
        """Return whether a margin in a text is larger than rounding can ever explain."""
        return margin is not None and margin > self._check(tuple(prompt), tuple(text)).control.ceiling

    def _judge(
        self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int], index: int, first: int, last: int
    ) -> Certificate:
        """Judge the divergence at `index` by the logits after the tokens `first` to `last` of the baseline's text."""
        ceiling = self._check(tuple(prompt), tuple(baseline)).control.ceiling
        single, *blocks = self._by_us(prompt, baseline, first, last)
        at, ours, theirs = len(prompt) - 1 + index - first, output[index], baseline[index]
        scores = single[at].float()
        tokens = [int(scores.argmax()), theirs, ours]
        control = _control(single, blocks, at, tokens)
        certificate = judge(index, float(scores.max() - scores[[theirs, ours]].min()), control, ceiling)
        if certificate.verdict == "mismatch" or not self._beside_stock.narrow:
            return certificate
        wide = self._by_stock_model(prompt, baseline, first, last)
        control = _control(wide, [single, *blocks], at, tokens)
        return recheck(certificate, float(wide[at, theirs] - wide[at, ours]), control, ceiling)

    def _spans(self, prompt_length: int, length: int, index: int) -> list[tuple[int, int]]:
        """Return the (first, last) tokens to measure for token `index` of an answer, from the smallest span up."""
        begin, parting = prompt_length - 1, prompt_length - 1 + index  # each token's logits choose the next one
        end = begin + length - 1
        if self._beside_stock.stock.depends_on_length:  # then the prompt must be prefilled as in decoding
            return list(dict.fromkeys([(begin, parting), (begin, end)]))
        spans = [(max(begin, parting - WINDOW + 1), parting), (begin, end), (max(min(begin, end - WIDEST + 1), 0), end)]
        return list(dict.fromkeys(spans))

    def _by_us(self, prompt: Sequence[int], answer: Sequence[int], first: int, last: int) -> list[Tensor]:
        """Return (n, V) scores after the tokens `first` to `last`: first by single tokens, then by each block size."""
        return self._again(tuple(prompt), tuple(answer), first, last)

    def _forced(self, prompt: Sequence[int], answer: Sequence[int], first: int, last: int) -> list[Tensor]:
        """See `_by_us`, which keeps what this returns."""
        text = [*prompt, *answer][: last + 1]
        # All block sizes longer than the text give one and the same block, so only one of them is used.
        sizes = sorted({min(k, max(last - first + 1, 2)) for k in self.blocks})
        every = teacher_forced_in(self.target, text, first, (1, *sizes))
        return [self._scores(logits, text, first, len(prompt)) for logits in every]

    def _by_stock_model(self, prompt: Sequence[int], answer: Sequence[int], first: int, last: int) -> Tensor:
        """Return the same scores by the stock model's forward, in float32."""
        text = [*prompt, *answer][: last + 1]
        (logits,) = self._beside_stock.truth.stretches(text, len(prompt), [first, len(text)])
        return self._scores(logits, text, first, len(prompt))

    def _scores(self, logits: Tensor, text: Sequence[int], first: int, prompt_length: int) -> Tensor:
        return self.rule.scores(logits, text[: first + 1], prompt_length, TokenTree.chain(text[first + 1 :]))


def _control(one: Tensor, others: Sequence[Tensor], at: int, tokens: Sequence[int]) -> float:
    """Return how far rounding moves a margin: of the two best tokens anywhere, and of any two of `tokens` at `at`.

    Where rounding decides, a block may prefer a token that is not among the two best ones.
    """
    found = [margin_control(one, other) for other in others]
    return largest([*found, *(spread_of_changes(one[at][tokens], other[at][tokens]) for other in others)])
