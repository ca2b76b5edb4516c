"""Certificates for real outputs: whether our forwards are the model's, where two texts part, and how close it was.

1. The baseline's text is compared with the stock model's own forward of it: our forwards may differ by no more than
   rounding, and its tokens are those that the stock model would choose (see `stock_check`).
2. Where the drafter's text is another one, the same is asked of it, and
3. the margin at the place where the two part is looked at: within the control it is a tie.

Everything is measured on the text in question: no text excuses another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from torch import Tensor

from selfdraft.core.certificate import Certificate, first_divergence, judge, largest, margin_control, recheck
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.stock_check import StockCheck
from selfdraft.models.target import Target

CONTROL_BLOCKS = (2, 4, 8, 16)  # the k of "M=1 versus M=k": what drafts are usually long
WINDOW = 16  # tokens up to the divergence that the control looks at first
WIDEST = 256  # and at last: of a short answer, those of its prompt as well
KEPT = 512  # texts whose check is remembered: repeats, drafters and references have the same baseline


class Certifier:
    """Judges outputs by the stock model's own forward and by the autoregressive output."""

    def __init__(self, target: Target, rule: NextToken | None = None, *, batch_size: int = 1) -> None:
        """Prepare.

        Args:
            rule: how the outputs were decoded. Of random draws, two that differ are no fault.
            batch_size: how many rows were decoded at once, by drafter and baseline alike: a step of B rows multiplies
                matrices by up to B times as many tokens, so blocks of that many belong to the control.
        """
        self.target, self.rule = target, rule or NextToken()
        self.blocks = sorted({*CONTROL_BLOCKS, *(batch_size * k for k in (1, *CONTROL_BLOCKS))} - {1})
        self._beside_stock = StockCheck(target, self.rule)
        self._check = lru_cache(maxsize=KEPT)(self._beside_stock)

    def certify(self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int]) -> Certificate:
        """Return the certificate of a drafter's output."""
        alone = self.by_stock(prompt, baseline)
        if alone.verdict == "mismatch":
            return alone
        parting = self.compare(prompt, output, baseline)
        if parting.verdict in ("tie", "sampled"):  # past the place where it parts, it is a text of its own
            drafted = self.by_stock(prompt, output)
            if drafted.verdict == "mismatch":
                return drafted
        return replace(parting, distance=alone.distance, ceiling=alone.ceiling)

    def by_stock(self, prompt: Sequence[int], output: Sequence[int]) -> Certificate:
        """Return the certificate of one text by itself: `exact`, or a mismatch with the stock model's forward."""
        if not output:
            return Certificate("exact")
        checked = self._check(tuple(prompt), tuple(output))
        measures = {"distance": checked.distance.value, "ceiling": checked.distance.ceiling}
        if checked.distance.excess > 1:
            return Certificate("mismatch", reason="forward", **measures)
        control, ceiling = checked.control
        if checked.control.excess > 1:
            return Certificate("mismatch", control=control, reason="control", **measures)
        if checked.gaps:
            index, gap = max(checked.gaps, key=lambda found: found[1])
            certificate = judge(index, gap, control, ceiling, "stock")
            for first, last in self._spans(len(prompt), len(output), index):
                if certificate.verdict == "tie":
                    break
                stock = self._by_stock_model(prompt, output, first, last)
                found = (margin_control(stock, ours) for ours in self._by_us(prompt, output, first, last))
                control = largest([control, *found])
                certificate = judge(index, gap, control, ceiling, "stock")
            if certificate.verdict == "mismatch":
                return replace(certificate, **measures)
        return Certificate("exact", **measures)

    def compare(self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int]) -> Certificate:
        """Return the verdict on the place where two texts part, whoever wrote the first one.

        There the baseline's text is forwarded again, token by token and in blocks of k: the margin comes from the
        former, the control is the largest change in the latter. The last `WINDOW` tokens tell mostly: the rest is
        prefilled alike for all. Nothing is called a mismatch before the whole answer was measured so, which is some
        ten times as expensive, and where that is short the end of its prompt too: what rounding can do at most is not
        seen on a dozen tokens. In a dtype narrower than float32 the float32 copy of the model then decides each tie
        anew. In a batch the baseline rounds as well, so that its token, too, may lose to the best one by no more than
        the control.
        """
        index = first_divergence(output, baseline)
        if index is None:
            return Certificate("exact")
        if self.rule.sample:
            return Certificate("sampled", index)
        if index >= min(len(output), len(baseline)):  # one goes on where the other ended: no rounding does that
            return Certificate("mismatch", index, reason="length")
        certificate = Certificate("mismatch", index)
        for first, last in self._spans(len(prompt), len(baseline), index):
            certificate = self._judge(prompt, output, baseline, index, first, last)
            if certificate.verdict == "tie":
                break
        return certificate

    def _judge(
        self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int], index: int, first: int, last: int
    ) -> Certificate:
        """By the logits after the tokens `first` to `last` of the text."""
        ceiling = self._check(tuple(prompt), tuple(baseline)).control.ceiling
        single, *blocks = self._by_us(prompt, baseline, first, last)
        control = largest(margin_control(single, block) for block in blocks)
        at, ours, theirs = len(prompt) - 1 + index - first, output[index], baseline[index]
        scores = single[at].float()
        certificate = judge(index, float(scores.max() - scores[[theirs, ours]].min()), control, ceiling)
        if certificate.verdict == "mismatch" or not self._beside_stock.narrow:
            return certificate
        wide = self._by_stock_model(prompt, baseline, first, last)
        control = largest(margin_control(wide, narrow) for narrow in (single, *blocks))
        return recheck(certificate, float(wide[at, theirs] - wide[at, ours]), control, ceiling)

    def _spans(self, prompt_length: int, length: int, index: int) -> list[tuple[int, int]]:
        """The first and last token of what is measured for the token `index` of an answer: little first, then more."""
        begin, parting = prompt_length - 1, prompt_length - 1 + index  # the logits after these choose the answer's
        end = begin + length - 1
        if self._beside_stock.stock.depends_on_length:  # there a text has to be forwarded as it was written
            return list(dict.fromkeys([(begin, parting), (begin, end)]))
        spans = [(max(begin, parting - WINDOW + 1), parting), (begin, end), (max(min(begin, end - WIDEST + 1), 0), end)]
        return list(dict.fromkeys(spans))

    def _by_us(self, prompt: Sequence[int], answer: Sequence[int], first: int, last: int) -> list[Tensor]:
        """(n, V) scores after the tokens `first` to `last`, by our forwards of one token and of each size of block."""
        text = [*prompt, *answer][: last + 1]
        # A block longer than the text is the text in one block, and one of those is enough.
        sizes = sorted({min(k, max(last - first + 1, 2)) for k in self.blocks})
        every = self.target.teacher_forced_in(text, first, (1, *sizes))
        return [self._scores(logits, text, first, len(prompt)) for logits in every]

    def _by_stock_model(self, prompt: Sequence[int], answer: Sequence[int], first: int, last: int) -> Tensor:
        """The same by the stock model's forward, in float32."""
        text = [*prompt, *answer][: last + 1]
        (logits,) = self._beside_stock.truth.stretches(text, len(prompt), [first, len(text)])
        return self._scores(logits, text, first, len(prompt))

    def _scores(self, logits: Tensor, text: Sequence[int], first: int, prompt_length: int) -> Tensor:
        return self.rule.scores(logits, text[: first + 1], prompt_length, TokenTree.chain(text[first + 1 :]))
