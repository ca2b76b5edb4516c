"""Certificates for real outputs: where they part, how close it was, and how close rounding can make it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdraft.core.certificate import Certificate, first_divergence, judge, margin_control
from selfdraft.core.tree import TokenTree
from selfdraft.models.target import Target

CONTROL_BLOCKS = (2, 4, 8, 16)  # the k of "M=1 versus M=k": what drafts are usually long


class Certifier:
    """Judges outputs against the autoregressive one; recomputes logits only where they part.

    Attributes:
        control: the largest control measured so far, in logits; None while every output was exact.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.control: float | None = None

    def certify(self, prompt: Sequence[int], output: Sequence[int], baseline: Sequence[int]) -> Certificate:
        """The certificate of one output.

        Where the two part, the baseline's own text is forwarded again, token by token and in blocks of k, each with its
        own cache: the margin comes from the former, the control is the largest change in the latter.
        """
        index = first_divergence(output, baseline)
        if index is None:
            return Certificate("exact")
        if index >= min(len(output), len(baseline)):  # one goes on where the other ended: no rounding does that
            return Certificate("mismatch", index)
        text = [prompt[-1], *baseline[:-1]]  # the token before each written one
        single = self._logits(prompt, text, 1)
        control = max(margin_control(single, self._logits(prompt, text, k)) for k in CONTROL_BLOCKS)
        self.control = max(control, self.control or 0.0)
        at = single[index].float()
        return judge(index, float(at[baseline[index]] - at[output[index]]), self.control)

    @torch.inference_mode()
    def _logits(self, prompt: Sequence[int], text: Sequence[int], block: int) -> Tensor:
        """(len(text), V) logits after each token of `text`, forwarded `block` tokens at a time behind the prompt."""
        target, forwards = self.target, self.target.forwards
        target.allocate(1, len(prompt) + len(text) + block)
        target.prefill(0, prompt[:-1])
        parts = []
        for first in range(0, len(text), block):
            root, *rest = text[first : first + block]
            parts.append(target.forward([0], [root], [TokenTree.chain(rest)])[0])
            target.commit(0, range(len(rest)))
        target.forwards = forwards  # these were no decoding
        return torch.cat(parts)
