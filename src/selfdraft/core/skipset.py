"""Skip sets: which attention and MLP sublayers a sparse draft path leaves out."""

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
    def of(layers: int, attention: Iterable[int], mlp: Iterable[int]) -> SkipSet:
        """Checked against a model of `layers` layers.

        Raises:
            UserError: where a layer does not exist.
        """
        chosen = SkipSet(frozenset(attention), frozenset(mlp))
        for name, ids in (("skip_attention", chosen.attention), ("skip_mlp", chosen.mlp)):
            wrong = sorted(i for i in ids if not 0 <= i < layers)
            if wrong:
                raise UserError(f"drafter.{name}={wrong}: this model's layers are 0 to {layers - 1}")
        return chosen

    @staticmethod
    def spread(layers: int, sparsity: float) -> SkipSet:
        """``int(2 (layers - 2) sparsity)`` sublayers, evenly spread over all but the first and the last layer.

        The count is SWIFT's (arXiv 2410.06916); even spreading is the simplest set that no search has seen.
        """
        inner = 2 * max(layers - 2, 0)
        count = int(inner * sparsity)
        # Centres of `count` equal slices of the inner sublayers, ordered attention, MLP, attention, …
        picks = ((np.arange(count) + 0.5) * inner / max(count, 1)).astype(int)
        attention = frozenset(1 + int(i) // 2 for i in picks if i % 2 == 0)
        mlp = frozenset(1 + int(i) // 2 for i in picks if i % 2 == 1)
        return SkipSet(attention, mlp)

    def whole_layers(self) -> frozenset[int]:
        """Layers skipped altogether: they are not even called."""
        return self.attention & self.mlp

    def __len__(self) -> int:
        return len(self.attention) + len(self.mlp)
