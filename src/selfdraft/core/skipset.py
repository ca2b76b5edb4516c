"""Skip sets: the attention and MLP sublayers that a sparse path leaves out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from selfdraft.core.errors import UserError


@dataclass(frozen=True)
class SkipSet:
    """Sublayers that the residual stream bypasses while drafting.

    Attributes:
        attention: layers whose attention is skipped.
        mlp: layers whose MLP is skipped.
    """

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    @staticmethod
    def of(layers: int, attention: Iterable[int], mlp: Iterable[int], group: str = "drafter") -> SkipSet:
        """Return a skip set, checked against a model of `layers` layers.

        Args:
            layers: number of the model's layers.
            attention, mlp: indices of the layers in which each is skipped.
            group: config group of the options that named them, for messages.

        Raises:
            UserError: a layer does not exist.
        """
        chosen = SkipSet(frozenset(attention), frozenset(mlp))
        for name, ids in (("skip_attention", chosen.attention), ("skip_mlp", chosen.mlp)):
            wrong = sorted(i for i in ids if not 0 <= i < layers)
            if wrong:
                raise UserError(f"{group}.{name}={wrong}: this model's layers are 0 to {layers - 1}")
        return chosen

    @staticmethod
    def spread(layers: int, sparsity: float) -> SkipSet:
        """Skip ``int(2 (layers - 2) sparsity)`` sublayers, evenly spread over all layers but the first and the last.

        The number is SWIFT's (arXiv 2410.06916); an even spread is the simplest set that needs no search. Half of the
        sublayers are attentions and half MLPs. Each kind is spread by itself, the MLPs shifted by half a step.
        """
        inner = max(layers - 2, 0)
        count = int(2 * inner * sparsity)
        attentions = (count + 1) // 2
        return SkipSet(_spread(inner, attentions, shift=0.0), _spread(inner, count - attentions, shift=0.5))

    @staticmethod
    def named_or_spread(
        layers: int, attention: Iterable[int] | None, mlp: Iterable[int] | None, sparsity: float
    ) -> SkipSet:
        """Skip the named sublayers; if neither kind is named, an even spread of them.

        Raises:
            UserError: a layer does not exist.
        """
        if attention is None and mlp is None:
            return SkipSet.spread(layers, sparsity)
        return SkipSet.of(layers, attention or (), mlp or (), "drafter.path")

    @staticmethod
    def from_layer(layers: int, exit_layer: int) -> SkipSet:
        """Skip everything from layer `exit_layer` on (early exit)."""
        rest = frozenset(range(exit_layer, layers))
        return SkipSet(rest, rest)

    def whole_layers(self) -> frozenset[int]:
        """Return the layers that are skipped entirely, which are not even called."""
        return self.attention & self.mlp

    def __len__(self) -> int:
        return len(self.attention) + len(self.mlp)


def _spread(inner: int, count: int, shift: float) -> frozenset[int]:
    """Return `count` of the layers 1 to `inner`: the middles of equal shares of them, moved on by `shift` shares."""
    picks = ((np.arange(count) + 0.5 + shift) * inner / max(count, 1)).astype(int) % max(inner, 1)
    return frozenset(1 + int(i) for i in picks)
