"""Certificates for real outputs: where they part, how close it was, and how close rounding can make it."""

from __future__ import annotations

from collections.abc import Sequence

from selfdraft.core.certificate import Certificate, first_divergence, judge, margin_control
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.models.target import Target

CONTROL_BLOCKS = (2, 4, 8, 16)  # the k of "M=1 versus M=k": what drafts are usually long


class Certifier:
    """Judges outputs against the autoregressive one; recomputes logits only where they part.

    Attributes:
        control: the largest control measured so far, in logits; None while every output was exact.
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

    def certify(self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int]) -> Certificate:
        """The certificate of one output.

        Where the two part, the baseline's own text is forwarded again behind the prompt, token by token and in blocks
        of k: the margin comes from the former, the control is the largest change in the latter. In a batch the baseline
        rounds as well, so that its token, too, may lose to the best one by no more than the control.
        """
        index = first_divergence(output, baseline)
        if index is None:
            return Certificate("exact")
        if self.rule.sample:
            return Certificate("sampled", index)
        if index >= min(len(output), len(baseline)):  # one goes on where the other ended: no rounding does that
            return Certificate("mismatch", index)
        text, prefix = [*prompt, *baseline[:-1]], len(prompt) - 1  # logits wanted from the last prompt token on
        # A block longer than the text is the text in one block, and one of those is enough.
        sizes = sorted({min(k, max(len(baseline), 2)) for k in self.blocks})
        logits = [self.target.teacher_forced(text, prefix, 1)]
        logits += [self.target.teacher_forced_on(text, prefix, k) for k in sizes]
        written = TokenTree.chain(baseline[:-1])
        single, *blocks = (self.rule.scores(x, prompt, len(prompt), written) for x in logits)
        control = max(margin_control(single, block) for block in blocks)
        self.control = max(control, self.control or 0.0)
        at = single[index].float()
        return judge(index, float(at.max() - at[[baseline[index], output[index]]].min()), self.control)
