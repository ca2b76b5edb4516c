"""Certificates for real outputs: where they part, how close it was, and how close rounding can make it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfdraft.core.certificate import Certificate, first_divergence, judge, margin_control, recheck
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.models.float32 import Float32Reference
from selfdraft.models.target import Target

CONTROL_BLOCKS = (2, 4, 8, 16)  # the k of "M=1 versus M=k": what drafts are usually long
WINDOW = 16  # tokens up to the divergence that the control looks at first
WIDEST = 256  # and at last: of a short answer, those of its prompt as well


class Certifier:
    """Judges outputs against the autoregressive one; recomputes logits only where they part.

    Attributes:
        control: the largest control measured so far, in logits; None while every output was exact.
        float32_control: the same of margins against float32; None while there was no tie in a narrower dtype.
    """

    def __init__(self, target: Target, rule: NextToken | None = None, *, batch_size: int = 1) -> None:
        """Prepare.

        Args:
            rule: how the outputs were decoded. Of random draws, two that differ are no fault.
            batch_size: how many rows were decoded at once, by drafter and baseline alike: a step of B rows multiplies
                matrices by up to B times as many tokens, so blocks of that many belong to the control.
        """
        self.target, self.rule = target, rule or NextToken()
        self.blocks = sorted({*CONTROL_BLOCKS, *(batch_size * k for k in (1, *CONTROL_BLOCKS))} - {1})
        self.control: float | None = None
        self.float32_control: float | None = None
        self._float32 = Float32Reference(target.model)

    def certify(self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int]) -> Certificate:
        """The certificate of one output.

        Where the two part, the baseline's text is forwarded again up to there, token by token and in blocks of k: the
        margin comes from the former, the control is the largest change in the latter. The last `WINDOW` tokens tell
        mostly: the rest is prefilled alike for all. Nothing is called a mismatch before the whole answer was measured
        so, which is some ten times as dear, and where that is short the end of its prompt too: what rounding can do at
        most is not seen on a dozen tokens. In a dtype narrower than float32 a float32 copy of the model then decides
        each tie anew. In a batch the baseline rounds as well, so that its token, too, may lose to the best one by no
        more than the control.
        """
        index = first_divergence(output, baseline)
        if index is None:
            return Certificate("exact")
        if self.rule.sample:
            return Certificate("sampled", index)
        if index >= min(len(output), len(baseline)):  # one goes on where the other ended: no rounding does that
            return Certificate("mismatch", index)
        begin, parting = len(prompt) - 1, len(prompt) - 1 + index  # the logits after these tokens choose the answer's
        end = begin + len(baseline) - 1
        spans = [(max(begin, parting - WINDOW + 1), parting), (begin, end), (max(min(begin, end - WIDEST + 1), 0), end)]
        for first, last in dict.fromkeys(spans):
            certificate = self._judge(prompt, output, baseline, index, first, last)
            if certificate.verdict != "mismatch":
                break
        return certificate

    def _judge(
        self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int], index: int, first: int, last: int
    ) -> Certificate:
        """By the logits after the tokens `first` to `last` of the text."""
        text = [*prompt, *baseline][: last + 1]
        history, chain = text[: first + 1], TokenTree.chain(text[first + 1 :])
        # A block longer than the text is the text in one block, and one of those is enough.
        sizes = sorted({min(k, max(last - first + 1, 2)) for k in self.blocks})
        single, *blocks = (
            self.rule.scores(logits, history, len(prompt), chain)
            for logits in self.target.teacher_forced_in(text, first, (1, *sizes))
        )
        self.control = max(*(margin_control(single, block) for block in blocks), self.control or 0.0)
        at, ours, theirs = len(prompt) - 1 + index - first, output[index], baseline[index]
        scores = single[at].float()
        certificate = judge(index, float(scores.max() - scores[[theirs, ours]].min()), self.control)
        if certificate.verdict == "mismatch" or self.target.dtype == torch.float32:
            return certificate
        wide = self.rule.scores(self._float32.logits(text, first), history, len(prompt), chain)
        changes = (margin_control(wide, narrow) for narrow in (single, *blocks))
        self.float32_control = max(*changes, self.float32_control or 0.0)
        return recheck(certificate, float(wide[at, theirs] - wide[at, ours]), self.float32_control)
