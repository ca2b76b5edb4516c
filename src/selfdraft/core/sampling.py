"""Turn logits into the distribution of the next token, and draw from it.

Shapes: n rows (a root and the nodes of its tree, or any batch of positions), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from selfdraft.core.tree import TokenTree

Processor = Callable[[Tensor, Tensor], Tensor]
"""``processor(ids (m, L), scores (m, V)) -> scores``: what transformers calls a LogitsProcessor."""


def most_likely(scores: Tensor) -> Tensor:
    """Return (n,) int64 on the device of the (n, V) scores: the best token of each row, the first of equal ones.

    On a CPU, numpy finds it in an eighth of the time of torch's `max`, and torch's `argmax` takes five times as long.
    Subclasses of tensors stay with torch, since they may stand for something else than numbers in memory.
    """
    if type(scores) is Tensor and scores.device.type == "cpu" and scores.dtype == torch.float32:
        return torch.from_numpy(np.argmax(scores.detach().numpy(), axis=-1))
    return scores.max(-1).indices


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Return (n, V) scores with all but the k best of each row at -inf; ties with the k-th are kept."""
    if k >= scores.shape[-1]:
        return scores
    return scores.masked_fill(scores < scores.topk(k, dim=-1).values[:, -1:], float("-inf"))


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Return (n, V) scores with all but the smallest set of probability >= p at -inf (Holtzman et al. 2020)."""
    ordered, order = scores.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    # A token is dropped if those before it reach p already, so the best one never is.
    dropped = probabilities.cumsum(-1) - probabilities >= p
    return scores.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), float("-inf"))


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    """Return (n, V) scores with tokens below p times the highest probability at -inf (Nguyen et al. 2024)."""
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + torch.tensor(p).log().item(), float("-inf"))


@dataclass(frozen=True)
class NextToken:
    """The sampling rule, which chooses the next token; the same for the target and for every drafter.

    Attributes:
        sample: draw from the distribution; otherwise take its argmax.
        temperature, top_k, top_p, min_p: applied in this order, as transformers does; None omits one.
        processors: applied before them, each with the true token history of every row.
        eos, min_new_tokens: no end-of-sequence token is chosen among the first `min_new_tokens` new ones.
    """

    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    processors: tuple[Processor, ...] = ()
    eos: frozenset[int] = field(default_factory=frozenset)
    min_new_tokens: int = 0

    def scores(self, logits: Tensor, history: Sequence[int], prompt_length: int, tree: TokenTree) -> Tensor:
        """Return (n + 1, V) logits after the root and each node of `tree`, processed but not yet warped.

        Args:
            logits: (n + 1, V).
            history: tokens up to and including the root.
            prompt_length: how many of them are the prompt's.
            tree: n nodes.
        """
        new = len(history) - prompt_length
        if not self.processors and new >= self.min_new_tokens:
            return logits
        depths = torch.cat([torch.zeros(1, dtype=torch.long), tree.depths])
        if self.processors:
            logits = self._processed(logits.float(), history, tree, depths)
        if self.eos and new < self.min_new_tokens:
            early = new + depths < self.min_new_tokens
            banned = torch.tensor(sorted(self.eos), device=logits.device)
            logits = logits.clone()
            logits[early.to(logits.device).nonzero(), banned] = float("-inf")
        return logits

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return (n, V) float32 distributions after temperature, top-k, top-p and min-p."""
        scores = scores.float() if self.temperature == 1 else scores.float() / self.temperature
        if self.top_k is not None:
            scores = keep_top_k(scores, self.top_k)
        if self.top_p is not None:
            scores = keep_top_p(scores, self.top_p)
        if self.min_p is not None:
            scores = keep_min_p(scores, self.min_p)
        return scores.softmax(-1)

    def distributions(self, logits: Tensor, history: Sequence[int], prompt_length: int, tree: TokenTree) -> Tensor:
        """Apply `scores`, then `probabilities`."""
        return self.probabilities(self.scores(logits, history, prompt_length, tree))

    def _processed(self, logits: Tensor, history: Sequence[int], tree: TokenTree, depths: Tensor) -> Tensor:
        """Apply every processor, to all nodes of a depth at once, because their histories have the same length."""
        logits = logits.clone()
        base = torch.tensor(list(history))
        for depth in range(int(depths.max()) + 1):
            rows = (depths == depth).nonzero().flatten()
            ids = base.expand(len(rows), -1)
            if depth:
                paths = tree.sees[rows - 1].nonzero()[:, 1].reshape(len(rows), depth)  # ancestors, root's child first
                ids = torch.cat([ids, tree.tokens[paths]], dim=1)
            on_device = rows.to(logits.device)
            scores = logits[on_device]
            for processor in self.processors:
                scores = processor(ids.to(logits.device), scores)
            logits[on_device] = scores
        return logits


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw (n,) tokens by inverse transform: the first one whose cumulated probability exceeds the uniform number.

    A token of probability zero is never drawn, even if the sum is rounded.

    Args:
        probabilities: (n, V); a row's sum need not be one.
        uniforms: (n,) in [0, 1).
    """
    cumulated = probabilities.double().cumsum(-1)
    thresholds = uniforms.double()[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, thresholds, right=True).flatten().clamp(max=probabilities.shape[-1] - 1)
