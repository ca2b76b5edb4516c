"""Small trained networks that correct or rate a guess, given the token that was drafted before it.

Gated rows and pseudo tokens guess several tokens in one forward, so none of them knows what was drafted before it.
These heads read a guess's hidden state together with that token. Two of them adjust the guess; one tells how likely it
is right.

Shapes: n predictions, C hidden size, r rank, v tokens of the draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfdraft.models.kernels.packing import PackedLinear

WIDTH = 64  # the width of the confidence head's hidden layer


class SamplerHead(nn.Module):
    """Adjusts a probe's hidden state to the token that was drafted before it: a residual MLP, at first the identity."""

    inner: nn.Linear | PackedLinear
    outer: nn.Linear | PackedLinear

    def __init__(self, size: int, width: int | None = None) -> None:
        """Make a head for hidden states of `size` numbers; `width`: of its own hidden layer, `size` if None."""
        super().__init__()
        width = width or size
        self.inner, self.outer = nn.Linear(2 * size, width), nn.Linear(width, size)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Return (n, C) input of the head, from (n, C) normed hidden states and embeddings of the tokens before."""
        return hidden + self.outer(functional.silu(self.inner(torch.cat([hidden, previous], dim=-1))))


class MarkovHead(nn.Module):
    """Low-rank logits that depend only on the token before: ``up(down(embedding))``, at first zero (DSpark)."""

    def __init__(self, size: int, vocabulary: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, rank, bias=False), nn.Linear(rank, vocabulary, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, previous: Tensor) -> Tensor:
        """Return (…, v) logits to add, from (…, C) embeddings of the tokens before."""
        return self.up(self.down(previous))


class ConfidenceHead(nn.Module):
    """The chance that a row's first choice is the target's, if all tokens before it are right (DSpark)."""

    def __init__(self, size: int, width: int = WIDTH) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2 * size, width), nn.Linear(width, 1)

    def forward(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Return (…,) logits of that chance, from (…, C) normed hidden states and embeddings of the tokens before."""
        return self.outer(functional.silu(self.inner(torch.cat([hidden, previous], dim=-1))))[..., 0]


class DraftHeads(nn.Module):
    """The heads of one adapter: they turn a gated row's hidden state and the token before into logits and confidence.

    Attributes:
        sampler, markov, confidence: each may be None.
    """

    def __init__(
        self, sampler: SamplerHead | None, markov: MarkovHead | None, confidence: ConfidenceHead | None
    ) -> None:
        super().__init__()
        self.sampler, self.markov, self.confidence = sampler, markov, confidence

    def logits(self, hidden: Tensor, previous: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (…, v) logits.

        Args:
            hidden: (…, C) normed hidden states. previous: (…, C) embeddings of the tokens before the predictions.
            head: the language-model head.
        """
        said = head(hidden if self.sampler is None else self.sampler(hidden, previous))
        return said if self.markov is None else said + self.markov(previous)

    def fit(self, size: int, vocabulary: int) -> bool:
        """Return whether they read states of `size` numbers, and their logits are those of `vocabulary` tokens."""
        return (
            (self.sampler is None or self.sampler.outer.weight.shape[0] == size)
            and (
                self.markov is None or (self.markov.down.in_features, self.markov.up.out_features) == (size, vocabulary)
            )
            and (self.confidence is None or self.confidence.inner.in_features == 2 * size)
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights under the names that `Adapter` uses."""
        return dict(self.named_parameters())

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> DraftHeads:
        """Return the heads that an adapter's tensors hold, in the sizes that these have.

        Raises:
            RuntimeError, KeyError, IndexError: the tensors do not fit each other.
        """
        parts: dict[str, dict[str, Tensor]] = {"sampler": {}, "markov": {}, "confidence": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor
        sampler = markov = confidence = None
        if given := parts["sampler"]:
            sampler = SamplerHead(given["outer.weight"].shape[0], given["inner.weight"].shape[0])
            sampler.load_state_dict(given)
        if given := parts["markov"]:
            rank, size = given["down.weight"].shape
            markov = MarkovHead(size, given["up.weight"].shape[0], rank)
            markov.load_state_dict(given)
        if given := parts["confidence"]:
            width, both = given["inner.weight"].shape
            confidence = ConfidenceHead(both // 2, width)
            confidence.load_state_dict(given)
        return DraftHeads(sampler, markov, confidence)
